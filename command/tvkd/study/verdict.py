"""What a study found: paired differences with intervals, and a sentence for each arm.

Two arms are compared on the same seeds and the same held-out pairs or prompts, so each seed and item has a difference
D[s, i]. Its mean varies with the seed, and with what happened to be held out:

    SE² = var_s(mean_i D)/n + var_i(mean_s D)/m          n seeds, m items

The interval is Student's, mean ± t·SE, with the degrees of freedom of Welch and Satterthwaite. A percentile bootstrap
of three seeds would hold the truth in about three of four studies, not in 95 of 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as students_t

from tvkd.evaluation.outcome import LOWER_IS_BETTER
from tvkd.study.plan import Arm
from tvkd_shared.value import Float64


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean of paired differences and its 95 % interval; no interval where there is one seed."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}".replace("-", "−")


Items = Mapping[int, Float64]
"""By seed the numbers of an outcome, float64 [M]; of a benchmark [1], its mean."""


def difference(arm: Items, other: Items) -> Difference | None:
    """Of an outcome between two arms, over the seeds that both have; None where they have none in common."""
    seeds = sorted(arm.keys() & other.keys())
    if not seeds:
        return None
    by_seed = np.stack([arm[seed] - other[seed] for seed in seeds])
    mean, n, m = float(by_seed.mean()), *by_seed.shape
    if n == 1:
        return Difference(mean, np.nan, np.nan)
    of_seeds = float(by_seed.mean(1).var(ddof=1)) / n
    of_items = float(by_seed.mean(0).var(ddof=1)) / m if m > 1 else 0.0
    variance = of_seeds + of_items
    if not variance:
        return Difference(mean, mean, mean)
    freedom = variance**2 / (of_seeds**2 / (n - 1) + (of_items**2 / (m - 1) if m > 1 else 0.0))
    half = float(students_t.ppf(0.975, freedom)) * variance**0.5
    return Difference(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of an arm, and the differences that it rests on."""

    arm: Arm
    to_dpo: Difference | None
    to_controls: dict[str, Difference]
    words: str
    gain: bool


def best_dpo(arms: Sequence[Arm], outcome: str, results: Mapping[str, Items], reading: set[str]) -> str | None:
    """The DPO arm of the best mean, the hardest to beat; `reading` has the names of arms that read a teacher."""
    sign = -1 if outcome in LOWER_IS_BETTER else 1
    candidates = [arm.name for arm in arms if arm.name not in reading and results.get(arm.name)]
    return max(candidates, key=lambda name: sign * mean_of(results[name]), default=None)


def mean_of(items: Items) -> float:
    return float(np.mean([numbers.mean() for numbers in items.values()]))


def verdict(arm: Arm, controls: Sequence[Arm], dpo: str, outcome: str, results: Mapping[str, Items]) -> Verdict:
    """Of an arm against DPO and against its own controls. A gain beats all of them, by 95 % intervals."""
    sign = -1.0 if outcome in LOWER_IS_BETTER else 1.0
    own = results.get(arm.name, {})
    to_dpo = difference(own, results.get(dpo, {}))
    to_controls = {
        str(control.control): found
        for control in controls
        if (found := difference(own, results.get(control.name, {}))) is not None
    }
    words, gain = _words(sign, to_dpo, to_controls, complete=len(to_controls) == len(controls))
    return Verdict(arm, to_dpo, to_controls, words, gain)


def _words(
    sign: float, to_dpo: Difference | None, to_controls: dict[str, Difference], *, complete: bool
) -> tuple[str, bool]:
    if to_dpo is None or not complete:
        return "Runs are missing: nothing can be said yet.", False
    if np.isnan(to_dpo.low):
        return "One seed says nothing of chance: run more seeds.", False
    beaten = {name: _above(sign, found) for name, found in to_controls.items()}
    if not _above(sign, to_dpo):
        worse = " It is worse than DPO." if _above(-sign, to_dpo) else ""
        content = " It does beat its shuffled control, so its content counts." if beaten.get("shuffled") else ""
        return f"No gain over DPO is shown.{worse}{content}", False
    if lost := [name for name, better in beaten.items() if not better]:
        return f"It beats DPO, but {' and '.join(_LOST[name] for name in lost)}.", False
    if not beaten:
        return "It beats DPO. It had no control, so length or spread may be all of it.", False
    return "A gain: it beats DPO and its controls.", True


_LOST = {
    "shuffled": "another pair's numbers do as well (its shuffled control is not beaten)",
    "length": "length alone may explain it (its length control is not beaten)",
}


def _above(sign: float, found: Difference) -> bool:
    return min(sign * found.low, sign * found.high) > 0
