"""Where a completion ends: at its last end-of-sequence (EOS) token."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tvkd_shared.errors import InvalidRequest


def end_of_sequence(completion: Sequence[int], eos: Collection[int], is_blank: Callable[[int], bool]) -> int | None:
    """Number of tokens up to and including the last EOS when only blank tokens follow it, else None.

    Chat templates end a turn with "<|im_end|>\\n": the newline is after the end, not part of the answer.
    """
    for index in range(len(completion) - 1, -1, -1):
        if completion[index] in eos:
            return index + 1
        if not is_blank(completion[index]):
            return None
    return None


class Ending:
    """Where completions end: at the EOS of a tokenizer of transformers and at `declared`, a model's eos_token_id."""

    def __init__(self, tokenizer: Any, declared: int | Sequence[int] | None) -> None:
        several = declared if isinstance(declared, Sequence) else [declared]
        self.eos = frozenset(token for token in [*several, tokenizer.eos_token_id] if token is not None)
        self._tokenizer = tokenizer
        self._blank: dict[int, bool] = {}

    def of(self, completion: Sequence[int]) -> int | None:
        """`end_of_sequence` of the completion."""
        return end_of_sequence(completion, self.eos, self._is_blank)

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not str(self._tokenizer.decode([token])).strip()
        return self._blank[token]


def declared_eos(folder: str | Path) -> int | list[int] | None:
    """eos_token_id of a model's folder as transformers takes it: generation_config.json's, or else config.json's.

    None where there is neither. Raises InvalidRequest for a file that is not a JSON object.
    """
    for file in (Path(folder) / name for name in ("generation_config.json", "config.json")):
        if file.is_file():
            try:
                declared: int | list[int] | None = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise InvalidRequest(f"{file} is not a JSON object: {error}") from error
            return declared
    return None
