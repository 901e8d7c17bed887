"""What a teacher cannot answer is refused before it reaches the engine, with the index and the value."""

import pytest

from families import save_tiny
from small_models import LONGEST, VOCABULARY, ask, load, tokens
from tvkd_server.teachers.teacher import check_temperatures
from tvkd_shared.errors import InvalidRequest, SequenceTooLong, TemperatureNotServed, TokenOutOfRange


def test_every_token_of_the_vocabulary_and_the_longest_sequence_are_answered(teacher):
    teacher("llama").check([0, VOCABULARY - 1], [[5] * (LONGEST - 2), [1]])


@pytest.mark.parametrize(("family", "longest"), [("mpt", LONGEST), ("whisper", 448)])
def test_the_longest_sequence_is_found_under_another_name(family, longest, tmp_path):
    teacher = load(save_tiny(family, tmp_path / family))
    assert teacher.info.longest_sequence == longest
    assert ask(teacher, (tokens(longest - 5, 1), [tokens(5, 2)], [1.0]))


@pytest.mark.parametrize(
    ("prompt", "completions", "error", "message"),
    [
        ([1, 503], [[1]], TokenOutOfRange, r"prompt_token_ids\[1\] is 503; .* 0 … 502"),
        ([1], [[1], [2, -1]], TokenOutOfRange, r"completions\[1\]\[1\] is -1"),
        ([1] * 5, [[1], [2] * 92], SequenceTooLong, r"completions\[1\] are 5 \+ 92 = 97 .* 96"),
        ([], [[1]], InvalidRequest, "prompt_token_ids is empty"),
        ([1], [[1], []], InvalidRequest, r"completions\[1\] is empty"),
        ([1], [], InvalidRequest, "no completion"),
    ],
)
def test_a_question_outside_the_limits_is_refused(prompt, completions, error, message, teacher):
    with pytest.raises(error, match=r"^items\[3\]: .*" + message) as caught:
        teacher("llama").check(prompt, completions, "items[3]")
    assert type(caught.value) is error and "\n" not in str(caught.value)
    with pytest.raises(error, match=message):
        ask(teacher("llama"), (prompt, completions, [1.0]))


@pytest.mark.parametrize(("temperature", "message"), [(0.09, r"\[1\] is 0.09; .* 0.1 … 10"), (float("nan"), "is nan")])
def test_a_temperature_outside_the_range_served_is_refused(temperature, message):
    check_temperatures([0.1, 10.0])
    with pytest.raises(TemperatureNotServed, match=message):
        check_temperatures([1.0, temperature])


def test_a_column_that_no_teacher_computes_does_not_reach_the_engine(teacher):
    with pytest.raises(ValueError, match="there is no column 'variance'"):
        ask_columns = teacher("llama").score([1], [[2]], ["value_1", "variance"])
        ask_columns.send(None)
    assert ask(teacher("llama"), (tokens(3, 1), [[2]], [1.0]))
