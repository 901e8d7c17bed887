"""The numbers of a completion: one list of columns, and the array that teachers make, stores keep, trainers read.

A completion of T tokens has S = T + 1 states. Each state has one number a column:

    value_τ       V_τ(s_t), the soft value at temperature τ, one column for each temperature
    action_logit  q_t = l(s_t)[y_t]; the last state s_T has no action, so the number there is NaN
    entropy       H(π_1(·|s_t))

`COLUMNS` is always computed and kept. A further temperature is a further value column. To add a column, see
`docs/changing.md`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Column:
    """One number of each state.

    name        what the store, Arrow and the engines call it
    plural      what a JSON answer calls the list of a completion's numbers
    last_state  whether the last state s_T has the number too; a column of actions has NaN there
    """

    name: str
    plural: str
    last_state: bool = True


def value_column(temperature: float) -> str:
    """The name of the value column of a temperature. Raises ValueError when it is not a positive finite number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature} is not a positive finite number")
    return "value_" + repr(float(temperature)).removesuffix(".0")


def temperature_of(name: str) -> float | None:
    """The temperature of a value column, None for any other column."""
    return float(name.removeprefix("value_")) if name.startswith("value_") else None


VALUE, ACTION_LOGIT, ENTROPY = value_column(1.0), "action_logit", "entropy"

COLUMNS: tuple[Column, ...] = (
    Column(VALUE, "values"),
    Column(ACTION_LOGIT, "action_logits", last_state=False),
    Column(ENTROPY, "entropies"),
)


def column_names(temperatures: Iterable[float] = ()) -> tuple[str, ...]:
    """The names of COLUMNS in their order, then one value column for each further temperature, each once."""
    return tuple(dict.fromkeys([column.name for column in COLUMNS] + [value_column(tau) for tau in temperatures]))


def has_last_state(name: str) -> bool:
    """Whether a column has a number in the last state. Raises ValueError for a name that no column has."""
    for column in COLUMNS:
        if column.name == name:
            return column.last_state
    if temperature_of(name) is None:
        raise ValueError(f"there is no column {name!r}; there are {', '.join(column_names())} and value_τ")
    return True


def check_numbers(columns: Sequence[str], numbers_SK: npt.NDArray[np.float32]) -> None:
    """Raises ValueError when the numbers cannot be those of a completion's columns: shape, dtype, or not finite.

    A column of actions must be NaN in the last state, and finite in all others.
    """
    if numbers_SK.dtype != np.float32 or numbers_SK.ndim != 2 or numbers_SK.shape[1] != len(columns):
        raise ValueError(f"numbers are {numbers_SK.dtype}{numbers_SK.shape}, not float32(T + 1, {len(columns)})")
    if len(numbers_SK) < 2:
        raise ValueError("a completion has at least one token")
    finite_SK = np.isfinite(numbers_SK)
    for index, name in enumerate(columns):
        if not has_last_state(name):
            finite_SK[-1, index] = np.isnan(numbers_SK[-1, index])
    if not finite_SK.all():
        wrong = columns[int(np.flatnonzero(~finite_SK.all(0))[0])]
        raise ValueError(f"numbers of column {wrong} are not all finite")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The numbers of one completion of T tokens: `numbers` is float32 [T + 1, K], `columns` says what each column is.

    Raises ValueError when a name, a shape, a dtype or a number is not as it must be; see `check_numbers`.
    """

    columns: tuple[str, ...]
    numbers: Float32

    def __post_init__(self) -> None:
        check_numbers(self.columns, self.numbers)

    @classmethod
    def checked(cls, columns: tuple[str, ...], numbers: Float32) -> "Record":
        """A record of numbers that were checked before, without another check."""
        record = object.__new__(cls)
        object.__setattr__(record, "columns", columns)
        object.__setattr__(record, "numbers", numbers)
        return record

    @classmethod
    def of(cls, values: Mapping[float, Float32], action_logits: Float32, entropies: Float32) -> "Record":
        """A record of the usual columns from a row each: values by temperature, with 1.0 among them."""
        if 1.0 not in values:
            raise ValueError("the value at temperature 1.0 is missing")
        columns = column_names(values)
        rows = {value_column(tau): row for tau, row in values.items()}
        rows |= {ACTION_LOGIT: np.append(action_logits, np.float32(np.nan)), ENTROPY: entropies}
        return cls(columns, np.stack([rows[name] for name in columns], 1))

    def column(self, name: str) -> Float32:
        """One column: float32 [T + 1], or [T] for a column of actions. Raises KeyError when the record lacks it."""
        if name not in self.columns:
            raise KeyError(f"the record has no column {name}; it has {', '.join(self.columns)}")
        numbers_S = self.numbers[:, self.columns.index(name)]
        return numbers_S if has_last_state(name) else numbers_S[:-1]

    def value(self, temperature: float = 1.0) -> Float32:
        """V_τ(s_0) … V_τ(s_T), float32 [T + 1]. Raises KeyError when the record lacks that temperature."""
        return self.column(value_column(temperature))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of the value columns."""
        return tuple(tau for name in self.columns if (tau := temperature_of(name)) is not None)

    @property
    def values(self) -> dict[float, Float32]:
        """Temperature → V_τ(s_0) … V_τ(s_T), float32 [T + 1]."""
        return {tau: self.value(tau) for tau in self.temperatures}

    @property
    def action_logits(self) -> Float32:
        """q_0 … q_{T−1}, float32 [T]."""
        return self.column(ACTION_LOGIT)

    @property
    def entropies(self) -> Float32:
        """H(s_0) … H(s_T), float32 [T + 1]."""
        return self.column(ENTROPY)

    @property
    def length(self) -> int:
        """T, the completion's number of tokens."""
        return len(self.numbers) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numbers.nbytes
