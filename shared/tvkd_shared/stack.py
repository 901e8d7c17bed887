"""Records of many completions one behind another: their sums at once, with no Python for each token."""

from collections.abc import Sequence

import numpy as np

from tvkd_shared.record import ACTION_LOGIT, VALUE, Record
from tvkd_shared.shaping import POTENTIALS, Shaping, shaping, sums_so_far
from tvkd_shared.value import Float64, log_prob


class Stack:
    """N whole completions of the same columns; of all of them S states, T_i + 1 of completion i.

    columns    the names of their columns
    lengths_N  T_i, tokens of each
    """

    def __init__(self, records: Sequence[Record]) -> None:
        """Raises ValueError when there is no record, or when their columns are not the same."""
        if len({record.columns for record in records}) != 1:
            raise ValueError("a stack has one record or more, all of the same columns")
        self.columns = records[0].columns
        self.lengths_N = np.array([record.length for record in records])
        self._numbers = np.concatenate([record.numbers for record in records])
        self._last_N = np.cumsum(self.lengths_N + 1) - 1
        self._first_N = self._last_N - self.lengths_N

    def column(self, name: str) -> Float64:
        """One column of all states, float64 [S]; one of actions is NaN in the last state of each completion."""
        return self._numbers[:, self.columns.index(name)].astype(np.float64)

    def token_sums(self, numbers_S: Float64) -> Float64:
        """The sum over each completion's tokens, [N]: what stands in the last states does not count."""
        numbers_S = numbers_S.copy()
        numbers_S[self._last_N] = 0.0
        return np.asarray(np.add.reduceat(numbers_S, self._first_N))

    def log_probs(self) -> Float64:
        """Σ_t log π(y_t|s_t) of each completion, in nats, [N]."""
        return self.token_sums(log_prob(self.column(ACTION_LOGIT), self.column(VALUE)))

    def shaping(self, how: Shaping, ends: Sequence[int | None], base: "Stack | None" = None) -> Float64:
        """S of each completion, [N], as `Shaping.of` gives it for all the completion's tokens.

        `ends` has each completion's `end`. A relative potential needs `base`, what the teacher started from, and
        without it raises ValueError.
        """
        phi_S = self._potential(how, base)
        if how.terminal == "zero":
            states_N = self.lengths_N + 1
            end_N = [count if end is None else end for end, count in zip(ends, states_N, strict=True)]
            place_S = np.arange(len(phi_S)) - np.repeat(self._first_N, states_N)
            phi_S[place_S >= np.repeat(end_N, states_N)] = 0.0
        elif how.terminal == "last-decision":
            phi_S[self._last_N] = phi_S[self._last_N - 1]
        # ψ of a last state would mix two completions, and `token_sums` leaves it out.
        psi_S = shaping(np.append(phi_S, 0.0), gamma=how.gamma, terminal="state", form=how.form)
        sums_N = self.token_sums(psi_S)
        return sums_N / self.lengths_N if how.aggregate == "mean" else sums_N

    def _potential(self, how: Shaping, base: "Stack | None") -> Float64:
        """Φ of each state, [S]."""
        definition, stacks = POTENTIALS[how.potential], [self]
        if definition.relative:
            if base is None:
                raise ValueError(f"potential {how.potential} needs the stack of what the teacher started from")
            stacks.append(base)
        numbers_S = definition.formula(*(stack.column(name) for stack in stacks for name in how.columns))
        if not definition.summed:
            return numbers_S
        # Sums over all completions, less what was there at each one's first state.
        numbers_S[self._last_N] = 0.0
        phi_S = sums_so_far(numbers_S)[:-1]
        return np.asarray(phi_S - np.repeat(phi_S[self._first_N], self.lengths_N + 1))
