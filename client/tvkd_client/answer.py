"""The check that every answer passes before it becomes a value: that it is the answer to what was asked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvkd_shared.arrow_stream import Part
from tvkd_shared.errors import InvalidRequest, WrongAnswer
from tvkd_shared.key import completion_keys, token_array
from tvkd_shared.text import TokenizedItem
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, PotentialsAnswer, TextItem, TokenItem


def as_arrays(item: TokenItem, index: int) -> TokenItem:
    """The item with arrays of token ids. Raises InvalidRequest, naming the place, for what is not a list of ids."""
    place = f"items[{index}]"
    if not len(item.completions):
        raise InvalidRequest(f"{place} has no completion; it needs at least one")
    prompt: Any = token_array(item.prompt_token_ids, f"{place}.prompt_token_ids")
    completions: list[Any] = [
        token_array(ids, f"{place}.completions[{number}]") for number, ids in enumerate(item.completions)
    ]
    return TokenItem(prompt, completions)


def checked_items(
    answer: PotentialsAnswer, asked: Sequence[TokenItem | TextItem], url: str, first: int
) -> list[ItemAnswer]:
    """The answer to each item that was asked. `first` is the index of the first in the caller's list.

    Text comes with its tokens, whose key is checked, and ends, which have to partition it. Raises WrongAnswer, naming
    the place, for an answer that does not fit.
    """
    counts = [len(item.completions) for item in asked]
    completions = [completion for item in answer.items for completion in item.completions]
    if len(completions) != sum(counts):
        raise WrongAnswer(f"{url}: {len(completions)} completions came, {sum(counts)} were asked for")
    if isinstance(asked[0], TextItem):
        items = answer.items
        if [len(item.completions) for item in items] != counts or any(item.prompt_tokens is None for item in items):
            raise WrongAnswer(f"{url}: the tokens of {len(counts)} prompts of text were asked for, and others came")
    else:
        in_order = iter(completions)
        items = [ItemAnswer([next(in_order) for _ in range(count)]) for count in counts]
    for index, (item, answered) in enumerate(zip(asked, items, strict=True), first):
        _check_item(answer.teacher_id, item, answered, f"{url}: items[{index}]")
    return items


def checked_part(part: Part, asked: Mapping[int, TokenItem], url: str) -> Iterator[tuple[int, list[CompletionAnswer]]]:
    """The index of each item in a part of an answer, and its completions. `asked` are the request's items in order.

    Raises WrongAnswer, naming the place, for an item that does not fit, or is not whole.
    """
    end = 0
    for index, item in asked.items():
        start, end = end, end + len(item.completions)
        rows = [part.completions.pop(row) for row in range(start, end) if row in part.completions]
        if rows:
            whole = PotentialsAnswer(part.teacher_id, part.temperatures, (), [ItemAnswer(rows)])
            yield index, checked_items(whole, [item], url, index)[0].completions
    if part.completions:
        raise WrongAnswer(f"{url}: row {min(part.completions)} came; the request has {end} rows")


def tokenized(item: ItemAnswer) -> TokenizedItem:
    """The tokens and ends in the checked answer to an item of text."""
    prompt, rows = np.asarray(item.prompt_tokens), item.completions
    ends = [None if row.ends is None else np.asarray(row.ends).tolist() for row in rows]
    return TokenizedItem(prompt.tolist(), [np.asarray(row.tokens).tolist() for row in rows], ends)


def _check_item(teacher: str, item: TokenItem | TextItem, answered: ItemAnswer, place: str) -> None:
    tokens: Any = item
    if isinstance(item, TextItem):
        if any(row.tokens is None for row in answered.completions):
            raise WrongAnswer(f"{place} is text and came without tokens; is tvkd on both sides of one version?")
        tokens = TokenItem(answered.prompt_tokens, [row.tokens for row in answered.completions])  # type: ignore[arg-type,misc]
    keys = completion_keys(teacher, tokens.prompt_token_ids, tokens.completions)
    for number, (row, key, ids) in enumerate(zip(answered.completions, keys, tokens.completions, strict=True)):
        where = f"{place}.completions[{number}]"
        if row.key != key:
            raise WrongAnswer(f"{where}: key {row.key.hex()} came; its tokens have key {key.hex()}")
        if row.length != len(ids):
            raise WrongAnswer(f"{where}: length {row.length} came; it has {len(ids)} tokens")
        if row.ends is not None and isinstance(item, TextItem):
            _check_ends(np.asarray(row.ends, np.int64), row.length, len(item.completions[number]), where)


def _check_ends(ends_T: npt.NDArray[np.int64], tokens: int, characters: int, where: str) -> None:
    if len(ends_T) != tokens or (np.diff(ends_T, prepend=0) < 0).any() or ends_T[-1] != characters:
        raise WrongAnswer(f"{where}: the offsets of its tokens do not partition its text of {characters} characters")
