"""A block: float32 [S, K], the numbers of S = T + 1 states in K columns, kept under a key and the columns' names."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tvkd_shared.record import Float32, has_last_state


class Damaged(Exception):
    """Stored bytes fail a check. Whoever asked for them is told that they are missing."""


def are_sound(columns: Sequence[str], rows_NK: Float32, last_states: npt.NDArray[np.int64]) -> bool:
    """Whether every number is finite, except NaN in the last states of a column of actions.

    A column that this version of tvkd does not know may hold any number.
    """
    finite_NK = np.isfinite(rows_NK)
    last_states = last_states[(last_states >= 0) & (last_states < len(rows_NK))]
    for index, name in enumerate(columns):
        try:
            if not has_last_state(name):
                finite_NK[last_states, index] = np.isnan(rows_NK[last_states, index])
        except ValueError:
            finite_NK[:, index] = True
    return bool(finite_NK.all())


def check(columns: Sequence[str], block_SK: Float32) -> Float32:
    """The block itself. Raises Damaged when a state is missing, or a number cannot be a completion's."""
    if len(block_SK) < 2 or not are_sound(columns, block_SK, np.array([len(block_SK) - 1])):
        raise Damaged("a block has fewer than two states, or a number that is not finite")
    return block_SK


def rounded(block_SK: Float32, mantissa_bits: int) -> Float32:
    """The block with `mantissa_bits` of float32's 23 kept: to nearest, ties to even, never to infinity; NaN stays.

    |rounded − exact| ≤ 2^−(mantissa_bits + 1) · |exact|, except for subnormal numbers; a second rounding changes
    nothing.
    """
    dropped = 23 - mantissa_bits
    if not dropped:
        return block_SK
    bits = np.ascontiguousarray(block_SK, np.float32).view(np.uint32)
    half, last = np.uint32((1 << dropped - 1) - 1), (bits >> np.uint32(dropped)) & np.uint32(1)
    mask = np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    nearest = ((bits + half + last) & mask).view(np.float32)
    kept = np.where(np.isfinite(nearest), nearest, (bits & mask).view(np.float32))
    return np.where(np.isnan(block_SK), block_SK, kept).astype(np.float32)
