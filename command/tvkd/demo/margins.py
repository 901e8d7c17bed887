"""What a reading of the teacher's values says of pairs before any training: does its margin follow label or length?"""

from collections.abc import Callable, Sequence

import numpy as np

from tvkd_client.margins import ROUNDING
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping, log_probs
from tvkd_shared.value import Float64

Records = Sequence[tuple[Record, Record]]
"""Of each pair the records of chosen and rejected."""


def shaping_margins(records: Records, shaping: Shaping) -> Float64:
    """S(chosen) − S(rejected) of each pair, float64 [N]; every completion ends with the end-of-sequence token."""
    return _margins(records, lambda record: shaping.of(record, kept=record.length, end=record.length))


def shaping_weight(records: Records, shaping: Shaping) -> float:
    """α = 1 / (standard deviation of the shaping margin): shaping then neither vanishes nor drowns the label.

    Raises InvalidRequest, naming the flags at fault, when the margin is the same for every pair up to rounding.
    """
    deviation = float(shaping_margins(records, shaping).std())
    if deviation > ROUNDING:
        return 1 / deviation
    if shaping.potential == "renyi" and shaping.temperature == 1:
        reason = "--potential renyi --temperature 1 is 0 in every state; take another temperature or potential"
    elif (shaping.terminal, shaping.gamma, shaping.aggregate) == ("zero", 1, "sum"):
        reason = (
            "--terminal zero --gamma 1 --aggregate sum leaves the potential of the prompt, which chosen and rejected "
            "share; change one of the three"
        )
    elif (shaping.form, shaping.gamma) == ("tpkd-ref", 1):
        reason = "--form tpkd-ref --gamma 1 is 0 for every token; take a gamma below 1"
    else:
        reason = "take more --pairs or --steps, or another reading"
    raise InvalidRequest(f"the shaping margin is the same for all {len(records)} training pairs: {reason}")


def log_prob_margins(records: Records) -> Float64:
    """log π(chosen) − log π(rejected) of the teacher itself: what its values are measured against, float64 [N]."""
    return _margins(records, lambda record: float(log_probs(record, record.length).sum()))


def length_differences(records: Records) -> Float64:
    """T(chosen) − T(rejected) of each pair, float64 [N]."""
    return _margins(records, lambda record: float(record.length))


def _margins(records: Records, score: Callable[[Record], float]) -> Float64:
    return np.array([score(chosen) - score(rejected) for chosen, rejected in records], np.float64)
