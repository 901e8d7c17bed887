"""Sums of many completions at once are those of each completion alone."""

from itertools import product

import numpy as np
import pytest

from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping, log_probs
from tvkd_shared.stack import Stack

LENGTHS = [1, 4, 2, 7]
ENDS = [1, None, 2, 5]


def records(seed: int, lengths=LENGTHS) -> list[Record]:
    random = np.random.default_rng(seed)

    def row(length):
        return random.normal(20, 5, length).astype(np.float32)

    return [Record.of({1.0: row(T + 1), 2.0: row(T + 1)}, row(T), row(T + 1)) for T in lengths]


@pytest.mark.parametrize(
    ("potential", "terminal", "aggregate", "form"),
    list(
        product(
            ("soft-value", "renyi", "entropy", "implicit"),
            ("state", "zero", "last-decision"),
            ("sum", "mean"),
            ("difference", "tpkd-ref"),
        )
    ),
)
def test_shaping_of_many_is_that_of_each(potential, terminal, aggregate, form):
    how = Shaping(0.9, 2.0, potential, terminal, aggregate, form)
    teacher, base = records(0), records(1)
    alone = [
        how.of(record, kept=record.length, end=end, base=other)
        for record, end, other in zip(teacher, ENDS, base, strict=True)
    ]
    assert Stack(teacher).shaping(how, ENDS, Stack(base)).tolist() == pytest.approx(alone, abs=1e-9)


def test_log_probs_of_many_are_those_of_each():
    alone = [log_probs(record, record.length).sum() for record in records(0)]
    assert Stack(records(0)).log_probs().tolist() == pytest.approx(alone)


def test_records_of_other_columns_are_refused():
    one = records(0, [3])[0]
    other = Record.of({1.0: one.value(1.0)}, one.action_logits, one.entropies)
    with pytest.raises(ValueError, match="same columns"):
        Stack([one, other])
