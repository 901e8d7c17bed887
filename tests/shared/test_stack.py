"""Sums of many completions at once are those of each completion alone."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from tvkd_shared.record import ACTION_LOGIT, ENTROPY, VALUE, Record
from tvkd_shared.shaping import POTENTIALS, Aggregate, Form, PotentialDefinition, Shaping, Terminal, log_probs
from tvkd_shared.stack import Stack
from tvkd_shared.value import log_prob

LENGTHS = [1, 4, 2, 7]
ENDS = [1, None, 2, 5]
CHOICES = list(product(*map(get_args, (Terminal, Aggregate, Form))))


def records(seed: int, lengths=LENGTHS) -> list[Record]:
    random = np.random.default_rng(seed)

    def row(length):
        return random.normal(20, 5, length).astype(np.float32)

    return [Record.of({1.0: row(T + 1), 2.0: row(T + 1)}, row(T), row(T + 1)) for T in lengths]


def check_shaping(potential, choices):
    how = Shaping(0.9, 2.0, potential, *choices)
    teacher, base = records(0), records(1)
    alone = [
        how.of(record, kept=record.length, end=end, base=other)
        for record, end, other in zip(teacher, ENDS, base, strict=True)
    ]
    assert Stack(teacher).shaping(how, ENDS, Stack(base)).tolist() == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_shaping_of_many_is_that_of_each(potential, choices):
    check_shaping(potential, choices)


@pytest.mark.parametrize(
    "definition",
    [
        PotentialDefinition(lambda _: (VALUE, ENTROPY), lambda value, entropy: value - entropy),
        PotentialDefinition(lambda _: (ENTROPY,), lambda entropy, base_entropy: entropy - base_entropy, relative=True),
        PotentialDefinition(lambda _: (ACTION_LOGIT, VALUE), log_prob, summed=True),
    ],
    ids=["of states", "relative", "summed"],
)
def test_a_new_potential_needs_its_entry_alone(monkeypatch, definition):
    monkeypatch.setitem(POTENTIALS, "entropy", definition)
    for choices in CHOICES:
        check_shaping("entropy", choices)


def test_log_probs_of_many_are_those_of_each():
    alone = [log_probs(record, record.length).sum() for record in records(0)]
    assert Stack(records(0)).log_probs().tolist() == pytest.approx(alone)


def test_records_of_other_columns_are_refused():
    one = records(0, [3])[0]
    other = Record.of({1.0: one.value(1.0)}, one.action_logits, one.entropies)
    with pytest.raises(ValueError, match="same columns"):
        Stack([one, other])
