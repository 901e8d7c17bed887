"""One number a completion: the closed forms, what truncation leaves, and where a completion ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvkd_shared.ending import Ending, declared_eos, end_of_sequence
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping

EOS, NEWLINE, WORD = 2, 7, 50
numbers = st.floats(-50, 50, width=32)


@st.composite
def records(draw, least: int = 1) -> Record:
    length = draw(st.integers(least, 12))

    def row(size: int) -> np.ndarray:
        return np.array(draw(st.lists(numbers, min_size=size, max_size=size)), np.float32)

    return Record.of({1.0: row(length + 1), 2.0: row(length + 1)}, row(length), row(length + 1))


def is_blank(token: int) -> bool:
    return token == NEWLINE


@given(records(), st.data())
def test_undiscounted_sum_telescopes_to_the_last_kept_state(record, data):
    kept = data.draw(st.integers(1, record.length))
    V = record.values[2.0].astype(np.float64)
    assert Shaping(temperature=2.0).of(record, kept=kept, end=None) == pytest.approx(V[kept] - V[0], abs=1e-9)


@given(records(), st.floats(0, 1))
def test_discounted_sum_is_its_closed_form(record, gamma):
    H = record.entropies.astype(np.float64)
    closed = gamma * H[-1] - (1 - gamma) * H[1:-1].sum() - H[0]
    S = Shaping(gamma=gamma, potential="entropy").of(record, kept=record.length, end=None)
    assert pytest.approx(closed, abs=1e-9) == S


@given(records())
def test_mean_is_the_sum_over_the_kept_tokens(record):
    total, mean = (
        Shaping(gamma=0.5, aggregate=how).of(record, kept=record.length, end=None) for how in ("sum", "mean")
    )
    assert mean * record.length == pytest.approx(total, abs=1e-9)


@given(records(least=2), st.data())
def test_a_cut_record_reads_as_the_record_of_the_cut_completion(record, data):
    kept = data.draw(st.integers(1, record.length - 1))
    cut = Record.of(
        {tau: row[: kept + 1] for tau, row in record.values.items()},
        record.action_logits[:kept],
        record.entropies[: kept + 1],
    )
    for terminal in ("state", "zero", "last-decision"):
        reading = Shaping(gamma=0.9, temperature=2.0, potential="renyi", terminal=terminal)
        assert reading.of(record, kept=kept, end=record.length) == reading.of(cut, kept=kept, end=None)


def test_truncation_reads_the_values_of_the_truncated_sequence(source):
    prompt, completion = [10, 11, 12], [20, 21, 22, 23, EOS]
    reading = Shaping(gamma=0.9, terminal="zero")
    whole, cut = source.fetch([prompt, prompt], [completion, completion[:3]])
    assert reading.of(whole, kept=3, end=5) == pytest.approx(reading.of(cut, kept=3, end=None), abs=1e-4)


def test_states_after_the_end_are_absorbing(source):
    completion = [20, 21, EOS, NEWLINE]
    record = source.fetch([[10, 11]], [completion])[0]
    V = record.values[1.0].astype(np.float64)
    end = end_of_sequence(completion, {EOS}, is_blank)
    S = Shaping(gamma=0.9, terminal="zero").of(record, kept=4, end=end)
    assert end == 3
    assert pytest.approx((0.9 * V[1] - V[0]) + (0.9 * V[2] - V[1]) - V[2], abs=1e-9) == S


@pytest.mark.parametrize(
    ("completion", "end"),
    [
        ([WORD, EOS], 2),
        ([WORD, EOS, NEWLINE], 2),
        ([WORD, EOS, NEWLINE, NEWLINE], 2),
        ([WORD, EOS, EOS], 3),
        ([WORD, WORD], None),
        ([WORD, EOS, WORD], None),
        ([WORD, EOS, WORD, EOS], 4),
        ([NEWLINE], None),
    ],
)
def test_a_completion_ends_at_its_last_eos_when_only_blanks_follow(completion, end):
    assert end_of_sequence(completion, {EOS}, is_blank) == end


def test_every_declared_end_of_sequence_is_one(tiny_teacher, student, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    model = AutoModelForCausalLM.from_pretrained(student)
    for declared in ([EOS, 9], 9, None):
        folder = tmp_path / str(declared)
        model.generation_config.eos_token_id = declared
        model.generation_config.save_pretrained(folder)
        assert declared_eos(str(folder)) == declared
        ending = Ending(tokenizer, declared)
        assert ending.of([WORD, EOS, NEWLINE]) == 2
        assert ending.of([WORD, 9, NEWLINE]) == (2 if declared else None)


def test_without_a_generation_config_the_model_s_own_counts(tmp_path):
    assert declared_eos(str(tmp_path)) is None
    (tmp_path / "config.json").write_text('{"eos_token_id": [2, 9]}')
    assert declared_eos(str(tmp_path)) == [2, 9]
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidRequest, match=r"config\.json is not a JSON object"):
        declared_eos(str(tmp_path))


def test_nothing_kept_is_refused_not_zero():
    record = Record.of({1.0: np.zeros(3, np.float32)}, np.zeros(2, np.float32), np.zeros(3, np.float32))
    for kept in (0, 3):
        with pytest.raises(InvalidRequest, match=f"{kept} of a completion's 2 tokens"):
            Shaping().of(record, kept=kept, end=None)


def test_only_the_temperatures_that_are_read_are_asked_for():
    assert Shaping(temperature=2.0).temperatures == (1.0, 2.0)
    assert Shaping().temperatures == (1.0,)
    assert Shaping(temperature=2.0, potential="entropy").temperatures == (1.0,)
