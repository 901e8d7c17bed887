"""Figures of margins, each against the plain sum that its name stands for."""

import math
import statistics

import numpy as np
import pytest

from tvkd_client.margins import effective_share, length_agreement, statistics_of, wilson

MARGINS = [2.0, -1.0, 0.5, 0.0, -6.0, 3.0]
LENGTHS = [1.0, 2.0, 0.0, -3.0, 4.0, -1.0]
TEACHER = [1.0, -2.0, 1.0, 0.5, -1.0, 2.0]


def of(margins, lengths=LENGTHS, teacher=TEACHER, alpha=None):
    return statistics_of(*(np.array(row, np.float64) for row in (margins, lengths, teacher)), alpha)


def said(found, words):
    return any(words in warning for warning in found.warnings)


def test_the_figures_are_those_of_a_plain_computation():
    found = of(MARGINS)
    assert found.agreement == 3 / 6
    assert found.length_correlation == pytest.approx(statistics.correlation(MARGINS, LENGTHS))
    assert found.teacher_correlation == pytest.approx(statistics.correlation(MARGINS, TEACHER))
    assert found.deviation == pytest.approx(statistics.pstdev(MARGINS))
    assert statistics.pstdev([found.alpha * m for m in MARGINS]) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.5, -2.0])
def test_the_weights_are_those_of_the_losss_gradient_at_the_start(alpha):
    # −d/dx of −log σ(x + α·m) at x = 0
    step = 1e-6
    weights = [
        (math.log1p(math.exp(step - alpha * m)) - math.log1p(math.exp(-step - alpha * m))) / (2 * step) for m in MARGINS
    ]
    found = of(MARGINS, alpha=alpha)
    assert found.effective_pairs == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights) / 6)
    assert found.flipped == sum(w > 0.75 for w in weights) / 6
    assert found.turned_down == sum(w < 0.25 for w in weights) / 6
    assert 0 < found.flipped < 1 and 0 < found.turned_down < 1


def test_equal_weights_count_every_pair_and_one_weight_counts_one():
    assert effective_share(np.full(5, 0.5)) == pytest.approx(1)
    assert effective_share(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)


def test_wilsons_interval_solves_its_own_equation():
    # Its ends are the p for which the observed share lies 1.96 standard errors away.
    for end in wilson(0.7, 50):
        assert abs(0.7 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50))
    assert wilson(1.0, 20)[1] == 1.0


def test_a_margin_that_is_only_length_is_named_as_such():
    random = np.random.default_rng(0)
    lengths = random.integers(-10, 14, 2000).astype(float)
    for sign in (1, -1):
        found = of(sign * (0.3 * lengths + random.normal(0, 0.1, 2000)), lengths, random.normal(size=2000))
        assert said(found, "mostly counts tokens") and said(found, "no more than length does: preferring longer")


def test_a_margin_that_says_more_than_length_is_not_accused():
    random = np.random.default_rng(0)
    found = of(random.normal(1, 1, 2000), random.integers(-10, 12, 2000).astype(float), random.normal(size=2000))
    assert found.warnings == ()


def test_a_margin_of_noise_is_called_chance_and_one_against_the_label_is_named():
    random = np.random.default_rng(0)
    noise, lengths = random.normal(0, 1, 2000), random.integers(-9, 10, 2000).astype(float)
    assert said(of(noise, lengths, noise), "hardly more than chance")
    assert said(of(noise - 1, lengths, noise), "against the label")


def test_a_margin_without_spread_has_no_alpha():
    found = of([1.0, 1.00001, 1.0], [1, 2, 3], [1, 2, 3])
    assert (found.alpha, found.effective_pairs, found.length_correlation) == (None, None, None)
    assert said(found, "same for every pair")


def test_length_alone_prefers_the_better_side_and_ties_count_half():
    assert length_agreement(np.array([1.0, 2, 3, -1, 0])) == ("longer", pytest.approx(3.5 / 5))
    assert length_agreement(np.array([-1.0, -2, 0, 3])) == ("shorter", pytest.approx(2.5 / 4))
