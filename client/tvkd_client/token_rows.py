"""Preference pairs as token ids: made by TRL of rows that passed the gate, and checked for what only tokens show."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tvkd_client.rows import Rows, gate
from tvkd_shared.errors import InvalidRequest, TVKDError

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Columns of token ids that TRL's preparation of preference data makes."""

_MARK = "\N{SYMBOL FOR NULL}content"


def token_rows(
    rows: Rows,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prepare: Callable[[Any], Any],
    *,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    show: bool = False,
) -> Any:
    """The rows with `TOKEN_COLUMNS`, made by `prepare`, which is TRL's and drops rows whose prompt fills `max_length`.

    `say` is told what `max_length` drops and cuts, and with `show` what the first pair is.

    Raises InvalidRequest for a row that does not pass `gate`, that the tokenizer refuses, or that has no token of a
    prompt or a completion; and where `max_length` leaves no row.
    """
    rows = gate(rows, name)
    first = next(iter(rows))
    if not isinstance(first["chosen"], str):
        if not tokenizer.chat_template:
            raise InvalidRequest("the tokenizer has no chat template, and the data set is conversational; set one")
        _check_contents(rows, name, tokenizer)
    elif tokenizer.eos_token is None:
        raise InvalidRequest("the tokenizer has no end-of-sequence token, which DPO puts behind plain text; set one")
    try:
        tokens = prepare(rows)
    except TVKDError:
        raise
    # A chat template and a tokenizer may raise anything about a row.
    except Exception as error:
        if not isinstance(rows, datasets.Dataset) or (row := _first_refused(rows, prepare)) is None:
            raise
        who = (
            "the tokenizer's chat template refuses a conversation" if isinstance(error, TemplateError) else "no tokens"
        )
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidRequest(f"data set {name}, row {row}: {who}: {reason}") from error
    if isinstance(tokens, datasets.Dataset):
        if max_length is not None:
            _say_dropped(len(rows), tokens, name, max_length, say)
        _check_tokens(tokens, name, tokenizer)
        if show:
            say(f"the first of {len(tokens):,} pairs of {name} is\n{spelled(tokens[0], tokenizer)}")
    return tokens


def measure(tokens: datasets.Dataset) -> tuple[npt.NDArray[np.int64], int]:
    """Token counts of each row's prompt, chosen and rejected completion, shape (rows, 3), and the largest token id."""
    lengths, largest = [], -1
    for batch in tokens.select_columns(list(TOKEN_COLUMNS)).with_format("arrow").iter(1000):
        lengths.append(np.stack([pc.list_value_length(batch[name]).to_numpy() for name in TOKEN_COLUMNS], axis=1))
        largest = max(largest, *(pc.max(pc.list_flatten(batch[name])).as_py() or 0 for name in TOKEN_COLUMNS))
    return np.concatenate(lengths).astype(np.int64), largest


def used_ids(tokens: datasets.Dataset) -> set[int]:
    """Every token id that the rows have."""
    used: set[int] = set()
    for batch in tokens.select_columns(list(TOKEN_COLUMNS)).with_format("arrow").iter(1000):
        used.update(*(pc.unique(pc.list_flatten(batch[name])).to_pylist() for name in TOKEN_COLUMNS))
    return used


def spelled(pair: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A pair of token ids as text, special tokens too, in three lines: a wrong prompt is seen there."""
    return "\n".join(
        f"  {name.removesuffix('_ids'):<9}{_shortened(str(tokenizer.decode(pair[name])))}" for name in TOKEN_COLUMNS
    )


def _shortened(text: str) -> str:
    """The text in quotes and in one line, with its middle left out where it is long."""
    return repr(text if len(text) <= 160 else f"{text[:80]} … {text[-80:]}")


def _check_tokens(tokens: datasets.Dataset, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    lengths, _ = measure(tokens)
    rows, columns = np.nonzero(lengths == 0)
    if len(rows):
        column = TOKEN_COLUMNS[columns[0]].removesuffix("_ids")
        raise InvalidRequest(
            f"data set {name}, row {rows[0]}: {column} has no token (and {len(rows) - 1} more such); "
            "one at least is needed"
        )
    special = set(tokenizer.all_special_ids)
    for number, prompt in enumerate(tokens["prompt_ids"]):
        if special.issuperset(prompt):
            raise InvalidRequest(
                f"data set {name}, row {number}: the prompt is {tokenizer.decode(prompt)!r}, special tokens only; "
                "--prompt-column names the column that has it"
            )


def _say_dropped(given: int, tokens: datasets.Dataset, name: str, max_length: int, say: Callable[[str], None]) -> None:
    limit = f"max_length {max_length}"
    if len(tokens) == 0:
        raise InvalidRequest(f"{limit} leaves none of the {given:,} pairs of {name}: their prompts alone are as long")
    lengths_N3, _ = measure(tokens)
    cut = int((lengths_N3[:, 0] + lengths_N3[:, 1:].max(1) > max_length).sum())
    if dropped := given - len(tokens):
        say(f"{limit} drops {dropped:,} of {given:,} pairs of {name}: their prompts alone are as long")
    if cut:
        say(f"{limit} cuts completions of {cut:,} of {given:,} pairs of {name}")


def _first_refused(rows: datasets.Dataset, prepare: Callable[[Any], Any]) -> int | None:
    """Number of the first row that cannot be prepared, found by halving; None where each alone can."""
    start, end = 0, len(rows)
    while end - start > 1:
        middle = (start + end) // 2
        if _refuses(rows.select(range(start, middle)), prepare):
            end = middle
        else:
            start = middle
    return start if _refuses(rows.select([start]), prepare) else None


def _refuses(rows: datasets.Dataset, prepare: Callable[[Any], Any]) -> bool:
    try:
        prepare(rows)
    except Exception:
        return True
    return False


def _check_contents(rows: Rows, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a content that is no text and that the template writes as Python does, such as None.

    A template is asked once for each kind of message. Raises InvalidRequest.
    """
    asked = set()
    for number, row in enumerate(rows if isinstance(rows, datasets.Dataset) else []):
        for side in ("chosen", "rejected"):
            chat = row["prompt"] + row[side]
            for place, message in enumerate(chat):
                content = message.get("content")
                kind = (message["role"], type(content))
                if isinstance(content, str) or kind in asked:
                    continue
                asked.add(kind)
                if _is_written_as_python(chat, place, tokenizer):
                    raise InvalidRequest(
                        f"data set {name}, row {number}: the chat template writes the content {content!r} as Python "
                        "does; give the message a text, which may be empty"
                    )


def _is_written_as_python(chat: list[dict[str, Any]], place: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    content = chat[place].get("content")
    marked = [*chat[:place], chat[place] | {"content": _MARK}, *chat[place + 1 :]]
    try:
        written, expected = (str(tokenizer.apply_chat_template(each, tokenize=False)) for each in (chat, marked))
    except Exception:
        return False  # what the template refuses is said with its row later
    return _MARK in expected and written == expected.replace(_MARK, str(content))
