"""Values agree with full float32 logits of each sequence alone, however the calls were batched."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from small_models import ARCHITECTURES, LONGEST, SHARED, UNSHARED, VOCABULARY, ask, assert_agrees, tokens
from tvkd_shared.record import column_names

TEMPERATURES = (0.1, 0.5, 1.0, 2.0, 10.0)

# Prompts of one token and of nearly the longest length, completions of one token, one to eight of them a prompt, and
# sequences of exactly the longest length. Windows of 8 are crossed before, at and after the border.
SHAPES = [
    (1, [1]),
    (1, [LONGEST - 1]),
    (LONGEST - 1, [1, 1]),
    (40, [LONGEST - 40, 1, 17]),
    (3, [4, 5]),
    (7, [1, 2, 3, 4, 5, 6, 7, 8]),
    (25, [30]),
]
QUESTIONS = [
    (
        tokens(prompt, 10 * index),
        [tokens(length, 10 * index + k + 1) for k, length in enumerate(lengths)],
        TEMPERATURES,
    )
    for index, (prompt, lengths) in enumerate(SHAPES)
]


def assert_all_agree(answers, questions, reference) -> None:
    for answer, (prompt, completions, temperatures) in zip(answers, questions, strict=True):
        assert len(answer) == len(completions)
        for record, completion in zip(answer, completions, strict=True):
            assert record.columns == column_names(temperatures)
            assert_agrees(record, reference(prompt, completion))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_agrees_at_every_state_for_unequal_prompts_in_one_batch(architecture, teacher, reference):
    answers = ask(teacher(architecture), *QUESTIONS)
    assert_all_agree(answers, QUESTIONS, reference(architecture))


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "mamba"])
@pytest.mark.parametrize("max_batch_tokens", [1, 100, 250])
def test_tiny_token_budgets_change_nothing(architecture, max_batch_tokens, teacher, reference):
    answers = ask(teacher(architecture, max_batch_tokens=max_batch_tokens), *QUESTIONS)
    assert_all_agree(answers, QUESTIONS, reference(architecture))


@pytest.mark.parametrize("head_chunk", [1, 7, 10_000])
def test_head_chunks_change_nothing(head_chunk, teacher, reference):
    answers = ask(teacher("gemma2", head_chunk=head_chunk), *QUESTIONS)
    assert_all_agree(answers, QUESTIONS, reference("gemma2"))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_questions_in_any_order_agree(architecture, teacher, reference, data):
    token = st.integers(0, VOCABULARY - 1)
    ids = st.lists(token, min_size=1, max_size=LONGEST // 2)
    question = st.tuples(
        ids, st.lists(ids, min_size=1, max_size=8), st.lists(st.floats(0.1, 10), max_size=3, unique=True)
    )
    questions = data.draw(st.lists(question, min_size=1, max_size=4))
    answers = ask(teacher(architecture, max_batch_tokens=data.draw(st.integers(1, 500))), *questions)
    assert_all_agree(answers, questions, reference(architecture))


def test_a_prompt_is_shared_wherever_the_cache_is_rows_of_keys_and_values(teacher):
    assert all(teacher(architecture)._pass._backbone.shares_prompts for architecture in SHARED)
    assert not any(teacher(architecture)._pass._backbone.shares_prompts for architecture in UNSHARED)


def test_a_prompt_is_read_once_for_all_its_completions_and_logits_are_made_for_their_states_only(teacher):
    small = teacher("llama", max_batch_tokens=64)
    read, headed = [], []
    hooks = [
        small._pass._backbone._forward.layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape)),
        small._pass._head._model.lm_head.register_forward_pre_hook(lambda _, args: headed.append(args[0].shape)),
    ]
    ask(small, (tokens(20, 0), [tokens(5, k) for k in range(8)], [1.0]))
    for hook in hooks:
        hook.remove()
    assert [rows * length for rows, length, _ in read] == [20, *[2 * 5] * 4]
    assert sum(rows * states for rows, states, _ in headed) == 8 * (5 + 1)


def test_a_value_does_not_depend_on_the_temperatures_asked_beside_it(teacher):
    question = (tokens(5, 1), [tokens(6, 2)], [0.5])
    alone = ask(teacher("llama"), question)[0][0]
    beside = ask(teacher("llama"), question, (tokens(4, 3), [tokens(6, 4)], [3.0, 0.7]))[0][0]
    assert alone.columns == beside.columns == column_names([0.5])
    np.testing.assert_allclose(alone.numbers, beside.numbers, rtol=0, atol=1e-5)
