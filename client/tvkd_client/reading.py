"""How a completion's record is read as one number. The maths is `tvkd_shared.shaping`; NumPy only.

The teacher's values do not depend on the student, so in the loss a completion is one number, S.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.scored import Scored
from tvkd_shared.shaping import Aggregate, Potential, Terminal, aggregate, potential, shaping
from tvkd_shared.value import Float64


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

    def of(self, scored: Scored, *, kept: int, end: int | None) -> float:
        """S of the completion's first `kept` tokens, float64. Raises as `psi` does."""
        return aggregate(self.psi(scored, kept=kept, end=end), self.aggregate)

    def psi(self, scored: Scored, *, kept: int, end: int | None) -> Float64:
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
