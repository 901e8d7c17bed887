"""Shaping: what each `terminal` and each potential means, in closed form."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvkd_shared.objective import tvkd_loss
from tvkd_shared.record import Record
from tvkd_shared.shaping import POTENTIALS, Potential, Shaping, aggregate, shaping

phi_S = arrays(np.float64, st.integers(2, 40), elements=st.floats(-50, 50))
gammas = st.floats(0, 1)


@given(phi_S)
def test_without_discount_the_sum_telescopes_to_last_minus_first(phi):
    psi = shaping(phi, gamma=1.0, terminal="state")
    assert aggregate(psi, "sum") == pytest.approx(phi[-1] - phi[0], abs=1e-9)


@given(phi_S, gammas)
def test_with_discount_the_sum_is_the_closed_form(phi, gamma):
    closed = gamma * phi[-1] - (1 - gamma) * phi[1:-1].sum() - phi[0]
    assert aggregate(shaping(phi, gamma=gamma, terminal="state"), "sum") == pytest.approx(closed, abs=1e-8)


@given(phi_S, gammas, st.data())
def test_zero_makes_every_state_after_the_end_absorbing(phi, gamma, data):
    end = data.draw(st.integers(1, len(phi) - 1))
    psi = shaping(phi, gamma=gamma, terminal="zero", end=end)
    assert psi[end - 1] == -phi[end - 1]
    assert not psi[end:].any()
    np.testing.assert_array_equal(psi[: end - 1], shaping(phi, gamma=gamma, terminal="state")[: end - 1])


@given(phi_S, gammas)
def test_zero_leaves_a_cut_completion_its_value(phi, gamma):
    cut = shaping(phi, gamma=gamma, terminal="zero", end=None)
    np.testing.assert_array_equal(cut, shaping(phi, gamma=gamma, terminal="state"))


@given(phi_S, gammas)
def test_last_decision_reads_the_state_the_last_token_was_chosen_in(phi, gamma):
    psi = shaping(phi, gamma=gamma, terminal="last-decision")
    assert psi[-1] == pytest.approx((gamma - 1) * phi[-2])


@given(phi_S, gammas)
def test_the_mean_is_the_sum_over_the_tokens(phi, gamma):
    psi = shaping(phi, gamma=gamma, terminal="state")
    assert aggregate(psi, "mean") * len(psi) == pytest.approx(aggregate(psi, "sum"), abs=1e-9)


@given(phi_S)
def test_shaping_leaves_the_potentials_it_was_given_alone(phi):
    before = phi.copy()
    shaping(phi, gamma=0.9, terminal="zero", end=1)
    shaping(phi, gamma=0.9, terminal="last-decision")
    np.testing.assert_array_equal(phi, before)


def test_each_potential_is_made_from_what_the_store_holds():
    v_tau, v_1, h = np.array([[3.0, 4.0], [1.0, 1.5], [0.2, 0.3]], np.float32)
    record = Record.of({1.0: v_1, 2.0: v_tau}, np.zeros(1, np.float32), h)
    expected = {"soft-value": v_tau, "renyi": v_tau - v_1, "entropy": h}
    assert expected.keys() == {name for name, definition in POTENTIALS.items() if not definition.relative}
    for name, phi in expected.items():
        choices = Shaping(potential=name, temperature=2.0, gamma=0.5)
        np.testing.assert_allclose(choices.psi(record, kept=1, end=None), [0.5 * phi[1] - phi[0]], rtol=1e-6)


def test_the_potentials_are_those_that_settings_accept():
    assert tuple(POTENTIALS) == get_args(Potential)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Shaping(potential="reward"),
        lambda: Shaping(form="tpkd"),
        lambda: Shaping(gamma=1.5),
        lambda: Shaping(temperature=0.0),
        lambda: shaping([1.0], gamma=1.0, terminal="state"),
        lambda: shaping([1.0, 2.0], gamma=1.0, terminal="end"),
        lambda: shaping([1.0, 2.0], gamma=1.0, terminal="zero", end=0),
        lambda: shaping([1.0, 2.0], gamma=1.0, terminal="zero", end=2),
        lambda: aggregate([1.0], "median"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


@given(st.floats(-20, 20), st.floats(0.01, 1))
def test_alpha_zero_is_dpo(log_ratio_margin, beta):
    dpo = -np.log(1 / (1 + np.exp(-beta * log_ratio_margin)))
    assert tvkd_loss(beta, log_ratio_margin, 0.0, 1e6) == pytest.approx(dpo)


def test_alpha_may_be_negative():
    assert tvkd_loss(0.1, 0.0, -1.0, 2.0) == pytest.approx(np.log1p(np.exp(2.0)))
