"""How a completion's record is read as one number, and where a completion ends. The maths is `tvkd_shared.shaping`.

The teacher's values do not depend on the student, so in the loss a completion is one number, S.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Record
from tvkd_shared.shaping import Aggregate, Potential, Terminal, aggregate, potential, shaping
from tvkd_shared.value import Float64

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Reading:
    """The choices that turn a record into S = aggregate(ψ(Φ)); what each means stands in `tvkd_shared.shaping`."""

    gamma: float = 1.0
    temperature: float = 1.0
    potential: Potential = "soft-value"
    terminal: Terminal = "state"
    aggregate: Aggregate = "sum"

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures that a source must send for this reading. 1.0 is in every record; entropy needs no other."""
        return (1.0,) if self.potential == "entropy" else tuple(sorted({1.0, self.temperature}))

    def of(self, scored: Record, *, kept: int, end: int | None) -> float:
        """S of the completion's first `kept` tokens, float64. Raises as `psi` does."""
        return aggregate(self.psi(scored, kept=kept, end=end), self.aggregate)

    def psi(self, scored: Record, *, kept: int, end: int | None) -> Float64:
        """ψ of each of the completion's first `kept` tokens, float64 [kept].

        `kept` is what the student's `max_length` left of the completion's T tokens, so states s_0 … s_kept are read.
        `end` is `end_of_sequence` of the whole completion; an end that was cut away is no end.
        Raises InvalidRequest when nothing was kept: there is no ψ to aggregate, and 0 would be invented.
        """
        if not 1 <= kept <= scored.length:
            raise InvalidRequest(
                f"{kept} of a completion's {scored.length} tokens are left after truncation, and shaping needs at least"
                " one; raise max_length or drop the pair"
            )
        tau = self.temperature if self.temperature in self.temperatures else 1.0
        phi_S = potential(
            self.potential,
            values_S=scored.values[tau][: kept + 1],
            values_1_S=scored.values[1.0][: kept + 1],
            entropies_S=scored.entropies[: kept + 1],
        )
        whole_end = end if end is not None and end <= kept else None
        return shaping(phi_S, gamma=self.gamma, terminal=self.terminal, end=whole_end)


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
    """Where a tokenizer's completions end: at its own EOS and any of `declared`, a generation config's eos_token_id."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", declared: int | Sequence[int] | None) -> None:
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


def declared_eos(folder: str) -> int | list[int] | None:
    """eos_token_id of a model's folder as transformers takes it: generation_config.json's, or else config.json's.

    None where there is neither. Raises InvalidRequest for a file that is no JSON object.
    """
    for file in (Path(folder) / name for name in ("generation_config.json", "config.json")):
        if file.is_file():
            try:
                declared: int | list[int] | None = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise InvalidRequest(f"{file} is no JSON object: {error}") from error
            return declared
    return None
