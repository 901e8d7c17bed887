"""The table of the study: means, and paired differences to DPO and to each arm's control with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

CONTROL = ", shuffled"
"""Ends the name of an arm's control."""

DRAWS = 10_000
Unit = tuple[int, int]
"""A world and a seed."""


def interval(differences: dict[Unit, float]) -> tuple[float, float, float]:
    """Mean of paired differences, and its 95 % interval: worlds are drawn with replacement, then seeds within each."""
    worlds = sorted({world for world, _ in differences})
    by_world = [np.array([value for (world, _), value in sorted(differences.items()) if world == w]) for w in worlds]
    chance = np.random.default_rng(0)
    means = []
    for _ in range(DRAWS):
        drawn = (by_world[index] for index in chance.integers(len(worlds), size=len(worlds)))
        means.append(np.concatenate([chance.choice(values, len(values)) for values in drawn]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean(list(differences.values()))), float(low), float(high)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table, one line an arm, in the order in which the arms were first run."""
    by_arm: dict[str, dict[Unit, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["world"], result["seed"]] = result
    lines = [
        "| arm | true reward | KL to S0 | length | minus DPO's, 95 % | its control's | minus its control's, 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, units in by_arm.items():
        if arm.endswith(CONTROL):
            continue
        control = by_arm.get(arm + CONTROL, {})
        to_dpo = "" if arm == "DPO" else _difference(units, by_arm.get("DPO", {}))
        means = [_mean(units, name) for name in ("reward", "kl", "length")]
        cells = [arm, *means, to_dpo, _mean(control, "reward"), _difference(units, control)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(units: dict[Unit, dict[str, Any]], name: str) -> str:
    return f"{np.mean([result[name] for result in units.values()]):.2f}".replace("-", "−") if units else ""


def _difference(units: dict[Unit, dict[str, Any]], others: dict[Unit, dict[str, Any]]) -> str:
    both = {unit: units[unit]["reward"] - others[unit]["reward"] for unit in units.keys() & others.keys()}
    if not both:
        return ""
    mean, low, high = interval(both)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
