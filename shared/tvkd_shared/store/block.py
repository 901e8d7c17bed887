"""A block: float32 [S, K], the numbers of S = T + 1 states in K columns, kept under a key and the columns' names."""

from collections.abc import Sequence

import numpy as np

from tvkd_shared.record import Float32, check_numbers, has_last_state


class Damaged(Exception):
    """Stored bytes fail a check. Whoever asked for them is told that they are missing."""


def is_known(column: str) -> bool:
    """Whether this version of tvkd knows what a column means."""
    try:
        has_last_state(column)
    except ValueError:
        return False
    return True


def check(columns: Sequence[str], block_SK: Float32) -> Float32:
    """The block itself. Raises Damaged when it cannot be a completion's; unknown columns may hold any number."""
    known = [index for index, name in enumerate(columns) if is_known(name)]
    try:
        check_numbers([columns[index] for index in known], block_SK[:, known])
    except ValueError as error:
        raise Damaged(str(error)) from error
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
    downward = (bits & mask).view(np.float32)
    kept = np.where(np.isfinite(nearest), nearest, downward)
    return np.where(np.isnan(block_SK), block_SK, kept).astype(np.float32)
