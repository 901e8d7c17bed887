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
        return self.token_sums(self._log_prob())

    def shaping(self, how: Shaping, ends: Sequence[int | None], base: "Stack | None" = None) -> Float64:
        """S of each completion, [N], as `Shaping.of` gives it for all the completion's tokens.

        `ends` has each completion's `end`. Potential implicit needs `base`, what the teacher started from, and without
        it raises ValueError.
        """
        phi_S = self._implicit(base) if how.potential == "implicit" else self._elementwise(how)
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

    def _elementwise(self, how: Shaping) -> Float64:
        return np.array(POTENTIALS[how.potential].phi(*map(self.column, how.columns)), np.float64)

    def _implicit(self, base: "Stack | None") -> Float64:
        """Σ_{i<t} A_i of each state, [S]: sums over all, less what was there at each completion's first state."""
        if base is None:
            raise ValueError("potential implicit needs the stack of what the teacher started from")
        advantages_S = self._log_prob() - base._log_prob()
        advantages_S[self._last_N] = 0.0
        phi_S = sums_so_far(advantages_S)[:-1]
        return np.asarray(phi_S - np.repeat(phi_S[self._first_N], self.lengths_N + 1))

    def _log_prob(self) -> Float64:
        return log_prob(self.column(ACTION_LOGIT), self.column(VALUE))
