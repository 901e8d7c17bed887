"""What margins say of pairs before any training: do they follow the label, or length, and what would they do to DPO?

A margin m is S(chosen) − S(rejected) of a pair, d = T(chosen) − T(rejected) its difference in length, N the number of
pairs. All arrays are float64 [N].
"""

from dataclasses import dataclass

import numpy as np

from tvkd_shared.objective import starting_weight
from tvkd_shared.shaping import Shaping
from tvkd_shared.value import Float64

READINGS = {
    "soft value, γ 1, sum: the paper": Shaping(),
    "soft value, γ 0.9, sum": Shaping(gamma=0.9),
    "soft value, γ 1, last decision": Shaping(terminal="last-decision"),
    "entropy, γ 0.9, sum": Shaping(gamma=0.9, potential="entropy"),
    "entropy, γ 0, mean": Shaping(gamma=0.0, potential="entropy", aggregate="mean"),
}
"""Readings of the teacher's values alone."""

RELATIVE_READINGS = {
    "implicit, γ 1, sum: ΣA": Shaping(potential="implicit"),
    "implicit, γ 0.9, sum": Shaping(potential="implicit", gamma=0.9),
}
"""Readings against what the teacher started from. The first is the reward that soft-label and token teach, ΣA."""

LOG_PROB = "the teacher's own log-prob"
"""The margin Σ log π of the teacher itself, among the readings."""

ROUNDING = 1e-4
"""Nats: values are float32, and those of one state differ so little between two micro-batches."""

COUNTS_TOKENS = 0.7
"""|correlation with length| from which on a margin is said to count tokens."""

CLEAR = 0.75
"""The probability, of chosen or of rejected, at which a margin is called clear: odds of three to one."""

Z = 1.959964
"""Standard deviations of a normal distribution that hold 95 %."""


@dataclass(frozen=True, slots=True)
class MarginStatistics:
    """What is known of one reading's margins. None where it is not defined, as for a margin without spread.

    agreement           share of pairs with m > 0; a margin of exactly 0 does not agree
    interval            its 95 % interval, Wilson's
    length_correlation  Pearson's, of m with d
    teacher_correlation Pearson's, of m with the teacher's own margin: ΣA where it is known, or else Σ log π
    deviation           standard deviation of m
    alpha               the α asked for, or else 1 / deviation, which makes the deviation of α·m one
    effective_pairs     (Σw)² / (N·Σw²), 0 … 1, of the gradient's weights w = σ(−α·m) before the first step, when the
                        student is its reference and β·Δ is 0; under DPO all are ½, and this is 1
    turned_down         share of pairs with w < ¼: the shaping alone already prefers chosen by odds of three to one, and
                        the pair counts for less than half of what it does under DPO
    flipped             share of pairs with w > ¾: the shaping prefers rejected by odds of three to one, so the label
                        has first to undo it
    warnings            a sentence for each thing to know before the margin is trusted
    """

    agreement: float
    interval: tuple[float, float]
    length_correlation: float | None
    teacher_correlation: float | None
    deviation: float
    alpha: float | None
    effective_pairs: float | None
    turned_down: float | None
    flipped: float | None
    warnings: tuple[str, ...]


def statistics_of(margins: Float64, lengths: Float64, teacher: Float64, alpha: float | None = None) -> MarginStatistics:
    """Of margins m, differences in length d, and the teacher's own margins."""
    deviation, agreement = float(margins.std()), float((margins > 0).mean())
    varied = deviation > ROUNDING
    alpha = alpha if alpha is not None else 1 / deviation if varied else None
    weights = None if alpha is None else starting_weight(alpha, margins)
    interval = wilson(agreement, len(margins))
    by_length = correlation(margins, lengths) if varied else None
    return MarginStatistics(
        agreement=agreement,
        interval=interval,
        length_correlation=by_length,
        teacher_correlation=correlation(margins, teacher) if varied else None,
        deviation=deviation,
        alpha=alpha,
        effective_pairs=None if weights is None else effective_share(weights),
        turned_down=None if weights is None else float((weights < 1 - CLEAR).mean()),
        flipped=None if weights is None else float((weights > CLEAR).mean()),
        warnings=tuple(_warnings(margins, lengths, interval, by_length)) if varied else (SAME,),
    )


SAME = "The margin is the same for every pair: it changes nothing that a constant would not."
COUNTS = "This setting mostly counts tokens: its correlation with the difference in length is {:+.2f}."
CHANCE = "It says hardly more than chance: ½ is in the interval of its agreement with the label."
AGAINST = "It is against the label in most pairs, which with α above 0 weigh more at the start than under DPO."
LENGTH = "It says no more than length does: preferring {} completions agrees with the label in {:.0%}."


def _warnings(margins: Float64, lengths: Float64, interval: tuple[float, float], by_length: float | None) -> list[str]:
    found = []
    if by_length is not None and abs(by_length) > COUNTS_TOKENS:
        found.append(COUNTS.format(by_length))
    if interval[0] <= 0.5 <= interval[1]:
        return [*found, CHANCE]
    if interval[1] < 0.5:
        found.append(AGAINST)
    better, share = length_agreement(lengths)
    if not _says_more(margins, lengths):
        found.append(LENGTH.format(better, share))
    return found


def _says_more(margins: Float64, lengths: Float64) -> bool:
    """Whether the margin, by its better sign, agrees with more labels than length by its better sign.

    By the 95 % interval of the mean difference over pairs, each right (1), wrong (0) or undecided (½) by either.
    """
    difference = _right(margins) - _right(lengths)
    return float(difference.mean() - Z * difference.std() / len(difference) ** 0.5) > 0


def _right(scores: Float64) -> Float64:
    right = (1 + np.sign(scores)) / 2
    return np.asarray(right if right.mean() >= 0.5 else 1 - right)


def length_agreement(lengths: Float64) -> tuple[str, float]:
    """What an offset by length alone agrees with: "longer" or "shorter", whichever is better, and its share of labels.

    A pair of equal lengths counts for ½.
    """
    return "longer" if np.sign(lengths).mean() >= 0 else "shorter", float(_right(lengths).mean())


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share p of n: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927)."""
    of_z = Z**2 / count
    half = Z * (share * (1 - share) / count + of_z / (4 * count)) ** 0.5
    return max(0.0, (share + of_z / 2 - half) / (1 + of_z)), min(1.0, (share + of_z / 2 + half) / (1 + of_z))


def correlation(first: Float64, second: Float64) -> float | None:
    """Pearson's; None when one of the two does not vary."""
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else None


def effective_share(weights: Float64) -> float | None:
    """(Σw)² / (N·Σw²): the share of pairs that would give as steady a mean gradient with equal weights (Kish 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / (len(weights) * squares) if squares else None
