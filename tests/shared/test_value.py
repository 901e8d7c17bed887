"""The reference maths: closed forms and identities that hold for every logit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvkd_shared.value import entropy, log_prob, value

logits_SV = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-60, 60))
temperatures = st.floats(0.1, 10)


@given(logits_SV, temperatures)
def test_value_is_temperature_times_logsumexp(logits, tau):
    long = logits.astype(np.longdouble)
    expected = tau * np.log(np.exp(long / tau).sum(-1))
    np.testing.assert_allclose(value(logits, tau), expected.astype(np.float64), rtol=1e-12, atol=1e-9)


@given(logits_SV, st.floats(-1e3, 1e3), temperatures)
def test_a_shift_of_all_logits_shifts_the_value(logits, shift, tau):
    np.testing.assert_allclose(value(logits + shift, tau), value(logits, tau) + shift, atol=1e-9)


@given(logits_SV)
def test_normalised_log_probs_have_lost_the_value(logits):
    normalised = logits - value(logits)[:, None]
    np.testing.assert_allclose(value(normalised), 0, atol=1e-12)


@given(logits_SV)
def test_log_probs_of_all_actions_sum_to_one(logits):
    probabilities = np.exp(log_prob(logits, value(logits)[:, None]))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-12)


@given(logits_SV)
def test_the_values_slope_in_temperature_is_the_entropy(logits):
    step = 1e-4
    slope = (value(logits, 1 + step) - value(logits, 1 - step)) / (2 * step)
    np.testing.assert_allclose(slope, entropy(logits), atol=1e-4)


def test_entropy_of_equal_logits_is_the_log_of_their_number():
    np.testing.assert_allclose(entropy(np.full((2, 7), 3.0)), np.log(7))


@pytest.mark.parametrize("tau", [0.0, -1.0, np.inf, np.nan])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(tau):
    with pytest.raises(ValueError, match="temperature"):
        value([1.0, 2.0], tau)
