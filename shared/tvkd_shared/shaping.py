"""Potential-based shaping of a completion, from the teacher's values. NumPy float64.

    ψ_t = γ · Φ(s_{t+1}) − Φ(s_t)      t = 0 … T−1

Source: Ng, Harada & Russell 1999; with Φ = V, TVKD (arXiv 2509.16965). With γ = 1 the sum telescopes to
Φ(s_T) − Φ(s_0), and Φ(s_0) cancels between the two completions of a prompt: only the last state counts. With γ < 1 it
grows with the length of the completion. What Φ(s_T) means is therefore a choice, and `terminal` makes it.

The authors' code has another ψ under the same name, which is not potential-based; `form` "tpkd-ref" is it:

    ψ_t = −(1 − γ) · Φ(s_{t+1})
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import ACTION_LOGIT, ENTROPY, VALUE, Record, has_last_state, temperature_of, value_column
from tvkd_shared.value import Float64, log_prob

Potential = Literal["soft-value", "renyi", "entropy", "implicit"]
Terminal = Literal["state", "zero", "last-decision"]
Aggregate = Literal["sum", "mean"]
Form = Literal["difference", "tpkd-ref"]
Recipe = Literal["tpkd-ref", "softvalue-sum"]


@dataclass(frozen=True, slots=True)
class PotentialDefinition:
    """Which columns a potential is made from, by the temperature τ, and a formula of their numbers, float64.

    The formula gives Φ of each state, elementwise. Of a `summed` potential it gives a number for each token, from those
    of the token's own state, and Φ(s_t) is their sum over the tokens before s_t.

    A `relative` potential takes the same columns of a second record too: that of what the teacher started from.
    """

    columns: Callable[[float], tuple[str, ...]]
    formula: Callable[..., Float64]
    relative: bool = False
    summed: bool = False


def advantage(value_T: Float64, logit_T: Float64, base_value_T: Float64, base_logit_T: Float64) -> Float64:
    """A_t = log π_T(y_t|s_t) − log π_0(y_t|s_t), float64 [T], from V_1 and q of the teacher and of its base π_0.

    It is what the teacher's DPO added to each token, in nats: Q − V of the reward that it stands for (Rafailov et al.
    2024, "From r to Q*"). A constant that is added to the logits of a state does not change it.
    """
    return log_prob(logit_T, value_T) - log_prob(base_logit_T, base_value_T)


def sums_so_far(numbers_T: npt.ArrayLike) -> Float64:
    """The sum over the tokens, or spans, before each state, float64 [T + 1], from a number of each, [T]."""
    return np.append(0.0, np.cumsum(np.asarray(numbers_T, np.float64)))


POTENTIALS: dict[Potential, PotentialDefinition] = {
    "soft-value": PotentialDefinition(lambda tau: (value_column(tau),), lambda value_S: value_S),
    # V_τ of the normalised log-probs.
    "renyi": PotentialDefinition(
        lambda tau: (value_column(tau), VALUE), lambda value_S, value_1_S: value_S - value_1_S
    ),
    "entropy": PotentialDefinition(lambda _: (ENTROPY,), lambda entropy_S: entropy_S),
    # Σ_{i<t} A_i, so that ψ_t = A_t with γ = 1.
    "implicit": PotentialDefinition(lambda _: (VALUE, ACTION_LOGIT), advantage, relative=True, summed=True),
}
"""Every potential by its name. To add one, add an entry here and its name to `Potential`."""

_AS_THEIRS: dict[str, Any] = {"form": "tpkd-ref", "terminal": "state", "aggregate": "sum"}
RECIPES: dict[Recipe, dict[str, Any]] = {
    "tpkd-ref": {"alpha": 1.0, "potential": "soft-value", "temperature": 1.0, **_AS_THEIRS},
    # log Σ_a π(a)^0.7 = 0.7·(V_τ − V_1) with τ = 1/0.7, here in the digits by which a user asks a store for it.
    "softvalue-sum": {"alpha": 0.7, "potential": "renyi", "temperature": 1.428571, **_AS_THEIRS},
}
"""What the authors' recipes fix of a training of objective tvkd, by name. γ and β are left to choose."""


@dataclass
class Shaping:
    """The choices that turn a completion's record into one number, S = aggregate(ψ(Φ)).

    The defaults are the paper's formula read literally. The teacher's values do not depend on the student, so in the
    loss a completion is this one number. Raises InvalidRequest, in one line, for a choice that has no meaning.
    """

    gamma: float = field(default=1.0, metadata={"help": "Discount in ψ = γΦ(s') − Φ(s), 0 to 1. With 1 Σψ telescopes."})
    temperature: float = field(
        default=1.0, metadata={"help": "τ of the value V = τ·logsumexp(logits/τ); the entropy does not use it."}
    )
    potential: Potential = field(
        default="soft-value",
        metadata={"help": "Φ: V_τ (soft-value), V_τ − V_1 (renyi), the teacher's entropy, or Σ_{i<t} A_i (implicit)."},
    )
    terminal: Terminal = field(
        default="state", metadata={"help": "What Φ is after the last token: its own, 0 after EOS, or Φ before it."}
    )
    aggregate: Aggregate = field(
        default="sum", metadata={"help": "S = Σψ (the paper's), or Σψ/T without the length term."}
    )
    form: Form = field(
        default="difference", metadata={"help": "ψ: γΦ(s') − Φ(s) (difference), or −(1 − γ)Φ(s') as in tpkd_ref."}
    )

    def __post_init__(self) -> None:
        self.gamma, self.temperature = finite("gamma", self.gamma), finite("temperature", self.temperature)
        if not 0 <= self.gamma <= 1:
            raise InvalidRequest(f"gamma {self.gamma} is not in 0 … 1")
        if self.temperature <= 0:
            raise InvalidRequest(f"temperature {self.temperature} is not above 0")
        choices = (("potential", Potential), ("terminal", Terminal), ("aggregate", Aggregate), ("form", Form))
        for name, known in choices:
            check_choice(name, getattr(self, name), get_args(known))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a record that the potential is made from."""
        return POTENTIALS[self.potential].columns(self.temperature)

    @property
    def reads_temperature(self) -> bool:
        """Whether the potential is another at another temperature."""
        columns = POTENTIALS[self.potential].columns
        return columns(1.0) != columns(2.0)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures that a source must send; 1.0 is in every record."""
        return tuple(sorted({1.0, *(tau for name in self.columns if (tau := temperature_of(name)) is not None)}))

    def of(self, record: Record, *, kept: int, end: int | None, base: Record | None = None) -> float:
        """S of the completion's first `kept` tokens, float64. Raises as `psi` does."""
        return aggregate(self.psi(record, kept=kept, end=end, base=base), self.aggregate)

    def psi(self, record: Record, *, kept: int, end: int | None, base: Record | None = None) -> Float64:
        """ψ of each of the completion's first `kept` tokens, float64 [kept].

        `base` is the record of what the teacher started from, for a relative potential.

        `kept` is what the student's `max_length` left of the completion's T tokens, so states s_0 … s_kept are read.
        `end` is the number of tokens up to the end-of-sequence token of the whole completion, which counts only when it
        was kept. Raises InvalidRequest when nothing was kept: there is no ψ to aggregate, and 0 would be invented.
        """
        definition, records = POTENTIALS[self.potential], [record]
        if definition.relative:
            if base is None:
                raise InvalidRequest(
                    f"potential {self.potential} compares the teacher with what it started from: name that model as"
                    " teacher_reference, or as reference the student's"
                )
            records.append(base)
        rows = [cut(one, name, kept) for one in records for name in self.columns]
        if definition.summed:
            return self._psi(sums_so_far(definition.formula(*(row[:kept] for row in rows))), end)
        return self._psi(definition.formula(*rows), end)

    def of_advantages(self, advantages_N: npt.ArrayLike, *, end: int | None) -> float:
        """S of potential implicit from A of each kept token or span, [N]; `end` counts tokens or spans as in `of`."""
        return aggregate(self._psi(sums_so_far(advantages_N), end), self.aggregate)

    def _psi(self, phi_S: Float64, end: int | None) -> Float64:
        end_kept = end if end is not None and end < len(phi_S) else None
        return shaping(phi_S, gamma=self.gamma, terminal=self.terminal, end=end_kept, form=self.form)


def cut(record: Record, column: str, kept: int) -> Float64:
    """A column of the completion's first `kept` tokens, float64 [kept + 1], or [kept] for a column of actions.

    Raises InvalidRequest when nothing was kept, or more than there is.
    """
    if not 1 <= kept <= record.length:
        raise InvalidRequest(
            f"{kept} of a completion's {record.length} tokens are left after truncation, and at least one is needed;"
            " raise max_length or drop the pair"
        )
    return np.asarray(record.column(column)[: kept + has_last_state(column)], np.float64)


def log_probs(record: Record, kept: int) -> Float64:
    """log π(y_t|s_t) = q_t − V_1(s_t) of the completion's first `kept` tokens, float64 [kept]. Raises as `cut` does."""
    return log_prob(cut(record, ACTION_LOGIT, kept), cut(record, VALUE, kept)[:-1])


def finite(name: str, number: object) -> float:
    """The number as a float. Raises InvalidRequest, naming the setting, when it is not a finite number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InvalidRequest(f"{name} {number!r} is not a finite number")
    return float(number)


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises InvalidRequest, naming the setting, when the value is not one of the known ones."""
    if value not in known:
        raise InvalidRequest(f"{name} {value!r} is unknown; known: {', '.join(known)}")


def shaping(
    potentials_S: npt.ArrayLike,
    *,
    gamma: float,
    terminal: Terminal,
    end: int | None = None,
    form: Form = "difference",
) -> Float64:
    """ψ_t of each token, shape (T,), from Φ of each state, shape (T + 1,).

    `form` is γ·Φ(s_{t+1}) − Φ(s_t) ("difference") or −(1 − γ)·Φ(s_{t+1}) ("tpkd-ref").

    `end` is the number of tokens up to and including the end-of-sequence token, None for a completion that was cut
    before it. `terminal` says what Φ(s_T) is:

    "state"          the teacher's potential after the last token, also after EOS (the formula read literally)
    "zero"           0 in every state from s_end on, the absorbing states of Ng et al.; a cut completion keeps its own
    "last-decision"  Φ(s_{T−1}), the state in which the last token was chosen

    Raises ValueError when there is no token, when `end` lies outside 1 … T, or for another `terminal`.
    """
    phi = np.array(potentials_S, np.float64)
    if phi.ndim != 1 or len(phi) < 2:
        raise ValueError(f"potentials have shape {phi.shape}; a completion of T ≥ 1 tokens has T + 1 states")
    if end is not None and not 1 <= end < len(phi):
        raise ValueError(f"end {end} is outside 1 … {len(phi) - 1}, the tokens of the completion")
    if terminal == "zero":
        if end is not None:
            phi[end:] = 0.0
    elif terminal == "last-decision":
        phi[-1] = phi[-2]
    elif terminal != "state":
        raise ValueError(f"terminal {terminal!r} is unknown; known: {', '.join(get_args(Terminal))}")
    return np.asarray(gamma * phi[1:] - (phi[1:] if form == "tpkd-ref" else phi[:-1]))


def aggregate(psi_T: npt.ArrayLike, how: Aggregate) -> float:
    """Σψ ("sum", the paper's) or Σψ / T ("mean", without the length term). Raises ValueError for another `how`."""
    psi = np.asarray(psi_T, np.float64)
    if how == "sum":
        return float(psi.sum())
    if how == "mean":
        return float(psi.mean())
    raise ValueError(f"aggregate {how!r} is unknown; known: {', '.join(get_args(Aggregate))}")
