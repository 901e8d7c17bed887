"""What is said of a reading before any training."""

import numpy as np
import pytest
from known_records import scored

from tvkd.demo.margins import length_differences, log_prob_margins, shaping_margins, shaping_weight
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.shaping import Shaping

RECORDS = [
    (scored([0, 3.0]), scored([0, 1.0])),
    (scored([0, 1, 2.0]), scored([0, 4.0])),
    (scored([0, 5.0]), scored([0, 5.0])),
]


def test_a_margin_is_the_chosen_shaping_less_the_rejected():
    assert shaping_margins(RECORDS, Shaping()).tolist() == [2.0, -2.0, 0.0]


def test_a_length_difference_is_the_chosen_less_the_rejected():
    assert length_differences(RECORDS).tolist() == [0.0, 1.0, 0.0]


def test_the_teachers_log_prob_sums_action_logits_less_values():
    # log π = 0 − V(s_0) − V(s_1) for the second pair's chosen completion, 0 − V(s_0) for its rejected one
    assert log_prob_margins(RECORDS).tolist() == [0.0, -1.0, 0.0]


def test_shaping_is_weighed_by_the_spread_of_its_margin():
    assert shaping_weight(RECORDS, Shaping()) == pytest.approx(1 / np.std([2.0, -2.0, 0.0]))


@pytest.mark.parametrize(
    ("reading", "flags"),
    [
        (Shaping(terminal="zero"), "--terminal zero --gamma 1 --aggregate sum"),
        (Shaping(potential="renyi"), "--potential renyi --temperature 1"),
        (Shaping(form="tpkd-ref"), "--form tpkd-ref --gamma 1"),
        (Shaping(potential="entropy"), "--pairs"),
    ],
)
def test_a_margin_that_is_the_same_for_every_pair_is_refused_and_its_flags_are_named(reading, flags):
    # As from two micro-batches of the teacher: s_0 differs in its last bits.
    records = [(scored([7.000001, 3.0]), scored([7.0, 1.0])), *RECORDS]
    with pytest.raises(InvalidRequest, match=flags):
        shaping_weight(records, reading)
