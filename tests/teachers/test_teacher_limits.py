"""What a teacher cannot answer is refused before it reaches the engine, with the index and the value."""

import pytest

from tvkd_server.teachers.limits import check
from tvkd_shared.errors import InvalidRequest, SequenceTooLong, TemperatureNotServed, TokenOutOfRange
from tvkd_shared.wire import TeacherInfo

INFO = TeacherInfo(
    id="0" * 32, name="t", dtype="float32", vocab_size=100, longest_sequence=10, engine="e", engine_version="1",
    temperatures=(0.1, 10.0),
)  # fmt: skip


def test_every_token_of_the_vocabulary_and_the_longest_sequence_are_answered():
    check(INFO, [0, 99], [[5] * 8, [1]], [0.1, 1.0, 10.0])


@pytest.mark.parametrize(
    ("prompt", "completions", "temperatures", "error", "says"),
    [
        ([1, 100], [[1]], [1.0], TokenOutOfRange, r"prompt_token_ids\[1\] is 100; .* 0 … 99"),
        ([1], [[1], [2, -1]], [1.0], TokenOutOfRange, r"completions\[1\]\[1\] is -1"),
        ([1] * 5, [[1], [2] * 6], [1.0], SequenceTooLong, r"completions\[1\] are 5 \+ 6 = 11 .* 10"),
        ([1], [[1]], [1.0, 0.09], TemperatureNotServed, r"temperatures\[1\] is 0.09; served are 0.1 … 10"),
        ([1], [[1]], [float("nan")], TemperatureNotServed, "is nan"),
        ([], [[1]], [1.0], InvalidRequest, "prompt_token_ids is empty"),
        ([1], [[1], []], [1.0], InvalidRequest, r"completions\[1\] is empty"),
        ([1], [], [1.0], InvalidRequest, "no completion"),
    ],
)
def test_a_question_outside_the_limits_is_refused(prompt, completions, temperatures, error, says):
    with pytest.raises(error, match=r"^items\[3\]: .*" + says) as caught:
        check(INFO, prompt, completions, temperatures, "items[3]")
    assert type(caught.value) is error and "\n" not in str(caught.value)
