"""Text as a tokenizer's tokens: a prompt and its completions apart, and how far into the text each token reaches.

Server and trainer use this one function, so that the same text and tokenizer give the same token ids on both sides.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tvkd_shared.errors import InvalidRequest, PayloadTooLarge, SequenceTooLong
from tvkd_shared.wire import TextItem

_NOT_BLANK = re.compile(r"\S*")
_MARK = "\ue000\ue001\ue002"
"""A text that no chat has, of private-use characters: where a template puts it, it puts an answer."""


@dataclass(frozen=True, slots=True)
class TokenizedItem:
    """Token ids of a prompt and its completions, and the ends of each completion's tokens.

    `ends` has for each token the number of characters (Unicode code points) of the completion's text up to its end.
    They never fall and the last is the text's length, so that each token stands for the characters between its
    predecessor's end and its own, and the tokens partition the text. A token that ends inside a character has its
    predecessor's end: the token that completes the character stands for it. What a template adds in front has the end
    0, and what it adds behind has the last end. None where a tokenizer or a template does not tell.
    """

    prompt_token_ids: list[int]
    completions: list[list[int]]
    ends: list[list[int] | None]


def tokenize(
    tokenizer: Any, item: TextItem, *, longest: float = math.inf, max_tokens: float = math.inf
) -> TokenizedItem:
    """Token ids of a prompt and its completions, divided where the tokenised prompt ends.

    `tokenizer` is one of transformers. Text is taken as it stands, with the special tokens that the tokenizer puts in
    front, and the end-of-sequence token behind only where the item says so. Messages go through the chat template, with
    each completion as the assistant's answer to them.
    Raises SequenceTooLong for a prompt that leaves no room within `longest`, PayloadTooLarge when the prompt, once
    for each completion, exceeds `max_tokens`, and InvalidRequest without a chat template, when a completion adds no
    token, or when a token spans the border between prompt and completion.
    """
    texts = _Plain(tokenizer, item) if isinstance(item.prompt, str) else _Chat(tokenizer, item)
    prompt_ids: list[int] = texts.encode(texts.prompt)["input_ids"]
    # Before the completions: each is tokenised with its prompt, and a long prompt takes its time each time.
    if len(prompt_ids) >= longest:
        raise SequenceTooLong(f"the prompt is {len(prompt_ids)} tokens; the teacher's longest sequence is {longest}")
    if len(prompt_ids) * len(item.completions) > max_tokens:
        raise PayloadTooLarge(
            f"a prompt of {len(prompt_ids):,} tokens and {len(item.completions):,} completions as text exceed "
            f"the {max_tokens:,} tokens that a request may still hold: split it, or send token ids"
        )
    completions, ends = [], []
    for index, completion in enumerate(item.completions):
        text = texts.with_answer(completion)
        encoded = texts.encode(text)
        ids: list[int] = encoded["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids or not prompt_ids:
            raise InvalidRequest(f"completions[{index}]: {_why_undivided(tokenizer, texts.prompt, prompt_ids, text)}")
        if len(ids) == len(prompt_ids):
            raise InvalidRequest(f"completions[{index}] is no token long; it needs at least one")
        place = texts.place(text, completion) if "offset_mapping" in encoded else None
        offsets = encoded.get("offset_mapping", [])[len(prompt_ids) :]
        ends_T = None if place is None else _ends(offsets, text, place, len(completion))
        if item.append_eos:
            ids = [*ids, tokenizer.eos_token_id]
            ends_T = ends_T and [*ends_T, len(completion)]
        completions.append(ids[len(prompt_ids) :])
        ends.append(ends_T)
    return TokenizedItem(prompt_ids, completions, ends)


def _why_undivided(tokenizer: Any, prompt: str, prompt_ids: Sequence[int], text: str) -> str:
    """Why the tokens of `text`, the prompt with a completion, do not begin with those of the prompt."""
    if not text.startswith(prompt):
        rest = next(prompt[end:] for end in range(len(prompt), -1, -1) if text.startswith(prompt[:end]))
        return (
            f"the chat template ends the prompt with {rest!r}, which it does not write before a given answer of the "
            "assistant; send token ids"
        )
    if prompt_ids and prompt_ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        return (
            f"the tokenizer puts {tokenizer.eos_token} behind the prompt, so that nothing can follow; set "
            "add_eos_token to false in tokenizer_config.json, or send token ids"
        )
    return (
        "a token spans the border between prompt and completion; end the prompt where a token ends, or send token ids"
    )


class _Place(NamedTuple):
    """start … stop of a longer text is a completion without its first `left_out` characters."""

    start: int
    stop: int
    left_out: int = 0


class _Plain:
    """A prompt and completions that stand one after the other, as they are."""

    special_tokens = True

    def __init__(self, tokenizer: Any, item: TextItem) -> None:
        if item.append_eos and tokenizer.eos_token_id is None:
            raise InvalidRequest("append_eos is set, and the tokenizer has no end-of-sequence token")
        self._tokenizer = tokenizer
        self.prompt = str(item.prompt)

    def encode(self, text: str) -> Any:
        offsets = {"return_offsets_mapping": True} if self._tokenizer.is_fast else {}
        return self._tokenizer(text, add_special_tokens=self.special_tokens, **offsets)

    def with_answer(self, completion: str) -> str:
        return self.prompt + completion

    def place(self, text: str, completion: str) -> "_Place | None":
        """Where the text has the completion; None where a template changes more of it than the blanks around it."""
        return _Place(len(self.prompt), len(text))


class _Chat(_Plain):
    """Messages through the chat template, which may strip the answer and write around it."""

    special_tokens = False

    def __init__(self, tokenizer: Any, item: TextItem) -> None:
        if not tokenizer.chat_template:
            raise InvalidRequest("the tokenizer has no chat template; send the prompt as text or token ids")
        self._tokenizer = tokenizer
        self._messages = [message.model_dump() for message in item.prompt if not isinstance(message, str)]
        self.prompt = self._render(self._messages, add_generation_prompt=True)
        self._before, _, self._after = self.with_answer(_MARK).rpartition(_MARK)

    def with_answer(self, completion: str) -> str:
        return self._render([*self._messages, {"role": "assistant", "content": completion}])

    def place(self, text: str, completion: str) -> "_Place | None":
        written = text.removeprefix(self._before).removesuffix(self._after)
        if written.strip() != completion.strip() or written not in completion:
            return None
        return _Place(len(self._before), len(text) - len(self._after), completion.index(written))

    def _render(self, messages: Sequence[Any], **options: Any) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InvalidRequest(f"the chat template refuses these messages: {reason}") from error


def _ends(offsets: Sequence[tuple[int, int]], text: str, place: _Place, length: int) -> list[int]:
    """The ends of tokens in a completion of `length` characters, from their offsets in the text that has it.

    Characters that the tokenizer drops belong to the token behind them when they are blank, as in tokenizers that keep
    them, and otherwise, as accents, to the token before. Blanks around the completion belong to their neighbour.
    """
    reached, rest = [], len(text)  # rest: the first character that a later token has a part of
    for begin, end in reversed(offsets):
        outside = end <= place.start or begin >= place.stop < end
        inside_a_character = end > rest
        known = 0 if outside or inside_a_character else _NOT_BLANK.match(text, end, rest).end()  # type: ignore[union-attr]
        reached.append(known)
        rest = rest if begin == end else min(rest, begin)
    ends_T = np.maximum.accumulate(np.array(reached[::-1])).clip(place.start, place.stop) - place.start
    ends_T[ends_T > 0] += place.left_out
    ends_T[ends_T == ends_T[-1]] = length
    ends: list[int] = ends_T.tolist()
    return ends
