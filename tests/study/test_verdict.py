"""A study's verdicts: useless arms are called so, real gains are found, and length is unmasked."""

import numpy as np
import pytest

from tvkd.study.plan import Arm
from tvkd.study.verdict import best_dpo, difference, verdict

DPO, ARM = Arm("DPO", {}, "DPO"), Arm("arm", {}, "arm")
SHUFFLED = Arm("arm, shuffled", {}, "arm", control="shuffled", of="arm")
LENGTH = Arm("arm, length", {}, "arm", control="length", of="arm")
SEEDS, ITEMS = 3, 200


def study(chance: np.random.Generator, **gains: float) -> dict:
    """Outcomes of three seeds on 200 pairs; an arm's effect varies with the seed, with the pair, and with both."""
    names = {"DPO": 0.0, "arm": 0.0, "arm, shuffled": 0.0, "arm, length": 0.0}
    pairs = chance.normal(size=ITEMS)
    return {
        name: {
            seed: pairs + gains.get(name.replace("arm, ", ""), 0.0) + effect + own + chance.normal(size=ITEMS)
            for seed, effect in enumerate(chance.normal(size=SEEDS) * 0.1)
        }
        for name, own in ((name, chance.normal(size=ITEMS) * 0.3) for name in names)
    }


def said(outcomes: dict, outcome: str = "reward"):
    return verdict(ARM, [SHUFFLED, LENGTH], "DPO", outcome, outcomes)


def test_a_useless_arm_is_called_no_gain_in_at_least_95_of_100_studies():
    gains = sum(said(study(np.random.default_rng(seed))).gain for seed in range(100))
    assert gains <= 5


def test_intervals_hold_the_truth_in_about_95_of_100_studies():
    held = 0
    for seed in range(300):
        outcomes = study(np.random.default_rng(seed))
        found = difference(outcomes["arm"], outcomes["DPO"])
        held += found.low <= 0 <= found.high
    assert held >= 0.93 * 300


def test_a_real_gain_is_found():
    gains = sum(said(study(np.random.default_rng(seed), arm=1.0)).gain for seed in range(20))
    assert gains >= 18


def test_a_gain_that_is_only_length_or_only_spread_is_unmasked():
    both = study(np.random.default_rng(0), arm=1.0, length=1.0)
    assert not said(both).gain and "length alone may explain it" in said(both).words
    spread = study(np.random.default_rng(0), arm=1.0, shuffled=1.0)
    assert not said(spread).gain and "another pair's numbers do as well" in said(spread).words


def test_content_that_counts_without_a_gain_is_said():
    found = said(study(np.random.default_rng(0), shuffled=-1.0))
    assert not found.gain and "its content counts" in found.words


def test_of_a_loss_lower_is_better():
    worse = study(np.random.default_rng(0), arm=1.0)
    assert "worse than DPO" in said(worse, "dpo_loss").words and said(worse, "reward").gain


def test_one_seed_and_missing_runs_say_nothing():
    outcomes = study(np.random.default_rng(0), arm=1.0)
    one = {name: {0: seeds[0]} for name, seeds in outcomes.items()}
    assert "One seed" in said(one).words and not said(one).gain
    del outcomes["arm, length"]
    assert "missing" in said(outcomes).words
    assert difference({}, outcomes["DPO"]) is None


def test_differences_are_paired_by_seed_and_item():
    pairs = np.random.default_rng(0).normal(size=50)
    found = difference(dict.fromkeys(range(3), 100 * pairs + 1), dict.fromkeys(range(3), 100 * pairs))
    assert found.mean == pytest.approx(1) and found.high - found.low < 1e-9


def test_arms_are_compared_with_the_best_dpo():
    outcomes = {"DPO": {0: np.zeros(2)}, "DPO, beta=1": {0: np.ones(2)}, "arm": {0: np.full(2, 9.0)}}
    arms = [DPO, Arm("DPO, beta=1", {}, "DPO"), ARM]
    assert best_dpo(arms, "reward", outcomes, {"arm"}) == "DPO, beta=1"
    assert best_dpo(arms, "dpo_loss", outcomes, {"arm"}) == "DPO"
