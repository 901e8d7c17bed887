"""Keys: what changes a value changes its key, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvkd_shared.key import KEY_BYTES, completion_keys, teacher_id

ids = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12)
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "rope_theta": 1e4}


@given(ids, st.lists(ids, min_size=1, max_size=4))
def test_a_key_depends_on_its_own_completion_alone(prompt, completions):
    together = completion_keys("t", prompt, completions)
    assert together == [completion_keys("t", prompt, [one])[0] for one in completions]
    assert all(len(key) == KEY_BYTES for key in together)


@given(ids, ids, ids, ids)
def test_different_sequences_have_different_keys(prompt, completion, other_prompt, other):
    same = (prompt, completion) == (other_prompt, other)
    assert (completion_keys("t", prompt, [completion]) == completion_keys("t", other_prompt, [other])) == same


@given(ids, ids)
def test_a_token_moved_across_the_border_changes_the_key(prompt, completion):
    moved = completion_keys("t", [*prompt, completion[0]], [[*completion[1:], 0]])
    assert moved != completion_keys("t", prompt, [completion])
    assert completion_keys("t", [*prompt, 1], [[2, 3]]) != completion_keys("t", prompt, [[1, 2, 3]])


def test_another_teacher_has_other_keys():
    assert completion_keys("a", [1], [[2]]) != completion_keys("b", [1], [[2]])


def test_the_key_of_a_known_sequence_never_changes():
    assert completion_keys("0" * 32, [1, 2, 3], [[4, 5]])[0].hex() == "46108e8e4633e8538aaad42ac8393311"


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_a_token_id_that_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match="token ids"):
        completion_keys("t", [1], [[bad]])


def test_the_teacher_id_covers_weights_config_dtype_and_quantisation():
    ids = {
        teacher_id("w", CONFIG, "float32", None),
        teacher_id("x", CONFIG, "float32", None),
        teacher_id("w", CONFIG | {"rope_theta": 5e5}, "float32", None),
        teacher_id("w", CONFIG, "bfloat16", None),
        teacher_id("w", CONFIG, "float32", "awq"),
    }
    assert len(ids) == 5


def test_the_teacher_id_leaves_out_what_changes_no_logit():
    moved = CONFIG | {"_name_or_path": "elsewhere", "transformers_version": "9", "dtype": "float16"}
    assert teacher_id("w", moved, "float32", None) == teacher_id("w", CONFIG, "float32", None)
    reordered = dict(reversed(CONFIG.items()))
    assert teacher_id("w", reordered, "float32", None) == teacher_id("w", CONFIG, "float32", None)
