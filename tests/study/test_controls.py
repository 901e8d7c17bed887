"""Controls of a study keep size and length, and know nothing of content."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvkd.study.controls import (
    AdvantageSource,
    LengthSource,
    ShuffledSource,
    TrainingPairs,
    advantages,
    partners,
    slope,
    stretched,
)
from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=60)


def record(seed: int, length: int) -> Record:
    chance = np.random.default_rng(seed)
    values, entropies = chance.normal(size=(2, length + 1)).astype(np.float32)
    return Record.of({1.0: values}, chance.normal(size=length).astype(np.float32), entropies)


class Known:
    """Answers with numbers that are made of the tokens themselves."""

    teacher_id = "known"

    def __init__(self, salt: int) -> None:
        self._salt = salt

    def fetch(self, prompts, completions):
        return [
            record(hash((self._salt, *prompt, *completion)) % 2**32, len(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


PAIRS = TrainingPairs(
    prompts=[[1], [2], [3], [4]],
    chosen=[[5] * 6, [6] * 6, [7] * 4, [8] * 5],
    rejected=[[9] * 3, [10] * 3, [11] * 1, [12] * 2],
)


@given(LENGTHS, st.integers(0, 5))
def test_each_pair_has_another_and_each_is_taken_once(lengths, seed):
    chosen, rejected = zip(*lengths, strict=True)
    partner = partners(chosen, rejected, seed)
    assert sorted(partner) == sorted(partner.values()) == list(range(len(lengths)))
    assert all(other != index for index, other in partner.items())


@given(LENGTHS)
def test_partners_have_the_same_length_difference_wherever_two_pairs_have_it(lengths):
    chosen, rejected = zip(*lengths, strict=True)
    differences = [c - r for c, r in lengths]
    count = Counter(differences)
    partner = partners(chosen, rejected, 0)
    alone = sum(1 for number in count.values() if number == 1)
    # A pair that is alone with its difference joins a block of others, whose ring then has two such places.
    mixed = sum(differences[index] != differences[other] for index, other in partner.items())
    assert mixed <= 3 * alone + sum(1 for number in count.values() if number % 8 == 1)
    if not alone and all(number <= 8 for number in count.values()):
        assert mixed == 0


def test_one_pair_alone_has_no_partner():
    with pytest.raises(ValueError, match="no other"):
        partners([3], [2], 0)


def test_a_record_of_the_same_length_is_the_partners_to_the_bit():
    given = record(0, 7)
    np.testing.assert_array_equal(stretched(given, 7).numbers, given.numbers)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_stretched_record_keeps_its_ends_and_thus_the_papers_margin(length, wanted):
    given = record(1, length)
    found = stretched(given, wanted)
    assert found.length == wanted
    assert Shaping().of(found, kept=wanted, end=None) == Shaping().of(given, kept=length, end=None)


def test_a_shuffled_source_answers_with_the_partners_numbers_and_permutes_the_margins():
    partner = partners(*PAIRS.lengths(), 0)
    source = ShuffledSource(Known(0), PAIRS, partner)
    for side in (PAIRS.chosen, PAIRS.rejected):
        own = Known(0).fetch(PAIRS.prompts, side)
        for row, found in enumerate(source.fetch(PAIRS.prompts, side)):
            index = partner[row]
            expected = Shaping().of(own[index], kept=own[index].length, end=None)
            assert Shaping().of(found, kept=found.length, end=None) == expected
    with pytest.raises(KeyError):
        source.fetch([[99]], [[1]])


def test_a_shuffled_advantage_is_the_partners_against_the_pairs_own_base():
    partner = partners(*PAIRS.lengths(), 0)
    teacher, base = Known(0), Known(1)
    source = AdvantageSource(teacher, base, PAIRS, partner)
    found = source.fetch(PAIRS.prompts, PAIRS.chosen)
    own_base = base.fetch(PAIRS.prompts, PAIRS.chosen)
    for index, other in partner.items():
        given = advantages(*(of.fetch([PAIRS.prompts[other]], [PAIRS.chosen[other]])[0] for of in (teacher, base)))
        read = advantages(found[index], own_base[index])
        expected = given[np.arange(len(read)) * len(given) // len(read)]
        np.testing.assert_allclose(read, expected, atol=1e-5)


def test_a_length_control_says_the_same_of_every_token():
    base = Known(1)
    source = AdvantageSource(Known(0), base, PAIRS, 0.25)
    for found, own in zip(
        source.fetch(PAIRS.prompts, PAIRS.chosen), base.fetch(PAIRS.prompts, PAIRS.chosen), strict=True
    ):
        np.testing.assert_allclose(advantages(found, own), 0.25, atol=1e-5)
    (one,) = LengthSource(0.5).fetch([[1]], [[2] * 6])
    assert Shaping().of(one, kept=6, end=None) == pytest.approx(3.0)


def test_the_length_control_has_the_part_of_the_margin_that_length_explains():
    difference = np.array([3.0, -1.0, 2.0, 0.0])
    assert slope(0.7 * difference, difference) == pytest.approx(0.7)
    assert slope(np.ones(3), np.zeros(3)) == 0.0
