"""The control takes shaping from another pair, always, and never changes a length."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from known_records import scored

from tvkd.demo.control import choose, partners
from tvkd.study.controls import ShuffledSource, TrainingPairs
from tvkd_shared.errors import InvalidRequest

LENGTHS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=30)


@given(LENGTHS, st.integers(0, 5))
def test_partners_are_a_permutation_within_equal_lengths_without_a_fixed_point(lengths, seed):
    partner = partners(lengths, seed)
    assert sorted(partner) == sorted(partner.values())
    assert all(own != other and lengths[own] == lengths[other] for own, other in partner.items())


@given(LENGTHS)
def test_only_a_pair_that_is_alone_in_its_lengths_has_no_partner(lengths):
    assert set(partners(lengths, 0)) == {i for i, both in enumerate(lengths) if lengths.count(both) > 1}


class Known:
    """A source whose value says which tokens were asked for."""

    teacher_id = "0" * 32

    def fetch(self, prompts, completions):
        return [scored([prompt[0], *completion]) for prompt, completion in zip(prompts, completions, strict=True)]


TOKENS = Dataset.from_dict(
    {
        "prompt_ids": [[1], [2], [3], [4]],
        "chosen_ids": [[11, 12], [21, 22], [31, 32], [41, 42]],
        "rejected_ids": [[13], [23], [33], [43]],
        "split": ["train", "heldout", "train", "train"],
    }
)


def test_a_completion_is_answered_with_its_partners_record():
    train = TOKENS.select([0, 2, 3])
    source = ShuffledSource(Known(), TrainingPairs.of(train), {0: 1, 1: 2, 2: 0})
    answers = source.fetch([[1], [1], [4]], [[11, 12], [13], [41, 42]])
    assert [answer.values[1.0].tolist() for answer in answers] == [[3, 31, 32], [3, 33], [1, 11, 12]]


def test_held_out_pairs_are_never_trained_on():
    choice = choose(TOKENS, most=2, seed=0)
    assert choice.train == [0, 2, 3] and choice.unseen == [1]
    assert choice.used == [0, 2]


def test_too_few_pairs_are_said():
    with pytest.raises(InvalidRequest, match="0 can be trained on and 1 are held out"):
        choose(TOKENS.select([0, 1]), most=2, seed=0)
