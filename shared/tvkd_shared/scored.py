"""What the teacher says of one completion: the record that teachers make, stores keep and trainers read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Values of one completion of T tokens, float32.

    values        temperature → V_τ(s_0) … V_τ(s_T), shape (T + 1,); temperature 1.0 is always there
    action_logits q_t = l(s_t)[y_t], shape (T,)
    entropies     H(π_1(·|s_t)), shape (T + 1,)

    Raises ValueError when a shape, a dtype or a number is not as it must be: such a record is not a value.
    """

    values: dict[float, Float32]
    action_logits: Float32
    entropies: Float32

    def __post_init__(self) -> None:
        states = len(self.action_logits) + 1
        if states < 2:
            raise ValueError("a completion has at least one token")
        if 1.0 not in self.values:
            raise ValueError("the value at temperature 1.0 is missing")
        named = {f"values at temperature {tau}": row for tau, row in self.values.items()}
        for name, row, length in [
            *((name, row, states) for name, row in named.items()),
            ("action logits", self.action_logits, states - 1),
            ("entropies", self.entropies, states),
        ]:
            if row.shape != (length,) or row.dtype != np.float32:
                raise ValueError(f"{name} are {row.dtype}{row.shape}, not float32({length},)")
            if not np.isfinite(row).all():
                raise ValueError(f"{name} are not all finite")

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return sum(row.nbytes for row in (*self.values.values(), self.action_logits, self.entropies))

    @property
    def length(self) -> int:
        """T, the completion's number of tokens."""
        return len(self.action_logits)
