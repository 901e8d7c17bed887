"""A block: the rows stored under one key and one temperature, S = T + 1 of them, float32.

Base block        columns V_1, action logit, entropy: 12 bytes a state. No action is taken in the terminal state s_T, so
                  its action logit is NaN.
Further blocks    one column, V_τ: 4 bytes a state and temperature.

A temperature that is asked for later becomes a further block; the base block is never written again.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from tvkd_shared.record import Float32, Record

BASE = 0.0
"""The temperature that the base block is filed under; no value has it, for a temperature is positive."""


class Damaged(Exception):
    """Stored bytes fail a check. To whoever asked for them, they are not there."""


def columns(temperature: float) -> tuple[str, ...]:
    """What the columns of a block hold, in their order."""
    return ("value_1", "action_logit", "entropy") if temperature == BASE else ("value",)


def blocks(record: Record) -> Iterator[tuple[float, Float32]]:
    """The record's base block, then one block for each further temperature, each of shape (S, columns)."""
    base_SK = np.empty((record.length + 1, 3), np.float32)
    base_SK[:, 0], base_SK[:-1, 1], base_SK[:, 2] = record.values[1.0], record.action_logits, record.entropies
    base_SK[-1, 1] = np.nan
    yield BASE, base_SK
    for temperature, values_S in record.values.items():
        if temperature != 1.0:
            yield temperature, values_S[:, None]


def record(base_SK: Float32, further: Mapping[float, Float32]) -> Record:
    """The record that `blocks` was given, in arrays of its own. Blocks are checked ones; see `check`."""
    value_1_S, action_logits_S, entropies_S = (column.copy() for column in base_SK.T)
    values = {1.0: value_1_S} | {temperature: block[:, 0].copy() for temperature, block in further.items()}
    return Record.of(values, action_logits_S[:-1], entropies_S)


def check(block_SK: Float32, temperature: float) -> Float32:
    """The block itself, if it may be one. Raises Damaged when a state is missing or a number is not finite."""
    finite = np.isfinite(block_SK)
    if temperature == BASE:
        finite[-1:, 1] ^= True
    if len(block_SK) < 2 or not finite.all():
        raise Damaged("a block of fewer than two states, or with a number that is not finite")
    return block_SK


def rounded(block_SK: Float32, mantissa_bits: int) -> Float32:
    """The block with `mantissa_bits` of float32's 23 kept: to nearest, ties to even, never to infinity; NaN stays.

    |rounded − exact| ≤ 2^−(mantissa_bits + 1) · |exact|, but for subnormal numbers; rounding again changes nothing.
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
