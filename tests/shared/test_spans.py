"""Spans group two tokenizers' tokens of one text: nothing is lost or counted twice, and sums are the teacher's own."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from text_tokenizers import byte_level, merged, texts, words
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.spans import shared_spans, token_spans
from tvkd_shared.text import tokenize
from tvkd_shared.wire import Message, TextItem

CHAT = [Message(role="user", content="naïve 😀?")]
SIDES = [
    byte_level, lambda: byte_level(900), lambda: byte_level(trim=True), merged, lambda: merged(normalized=True), words,
]  # fmt: skip
sides = st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES))


def ends_of(tokenizer, text):
    return tokenize(tokenizer, TextItem(prompt=CHAT, completions=[text])).ends[0]


@given(texts, sides)
def test_spans_partition_text_and_tokens_and_are_the_smallest(text, makers):
    student, teacher = (ends_of(make(), text) for make in makers)
    spans = shared_spans(student, teacher)
    for counts, ends in ((spans.student_counts, student), (spans.teacher_counts, teacher)):
        assert counts[0] > 0 and (np.diff(counts) > 0).all() and counts[-1] == len(ends)
    ends_N = [student[count - 1] for count in spans.student_counts]
    assert ends_N == [teacher[count - 1] for count in spans.teacher_counts]
    assume(student.count(len(text)) > 1 < teacher.count(len(text)))  # unless one tokenizer drops all of the text
    # Each place at which both have a border ends one span, and end-of-turn is a span of its own behind them.
    *of_text, end_of_turn = ends_N
    assert of_text == sorted(set(student) & set(teacher) - {0}) and of_text[-1] == end_of_turn == len(text)
    assert [student.index(end) + 1 for end in of_text] == spans.student_counts[:-1].tolist()
    assert [teacher.index(end) + 1 for end in of_text] == spans.teacher_counts[:-1].tolist()


@given(texts, sides, st.randoms())
def test_sums_over_spans_add_up_to_each_sides_own_sum(text, makers, random):
    student, teacher = (ends_of(make(), text) for make in makers)
    spans = shared_spans(student, teacher)
    # Whole numbers, so that no order of adding rounds.
    numbers_T, numbers_U = (np.array([random.randrange(-999, 999) for _ in ends], float) for ends in (student, teacher))
    assert spans.student_sums(numbers_T).sum() == numbers_T.sum()
    assert spans.teacher_sums(numbers_U).sum() == numbers_U.sum()
    for span in range(len(spans.student_counts)):
        assert spans.student_sums(numbers_T)[span] == numbers_T[spans.of_student_tokens == span].sum()


@given(texts, sides, st.data())
def test_truncation_keeps_the_spans_that_are_whole(text, makers, data):
    student, teacher = (ends_of(make(), text) for make in makers)
    spans, kept = shared_spans(student, teacher), data.draw(st.integers(0, len(student)))
    cut = spans.within(kept)
    count = len(cut.student_counts)
    assert count == sum(end <= kept for end in spans.student_counts)
    assert cut.student_counts.tolist() == spans.student_counts[:count].tolist()
    assert cut.teacher_counts.tolist() == spans.teacher_counts[:count].tolist()


@given(st.integers(1, 40), st.data())
def test_with_one_tokenizer_a_span_is_a_token_and_its_number_the_same_bits(tokens, data):
    numbers = data.draw(st.lists(st.floats(width=32), min_size=tokens, max_size=tokens))
    for dtype in (np.float32, np.float64):
        numbers_T = np.array(numbers, dtype)
        sums = token_spans(tokens).student_sums(numbers_T)
        assert sums.dtype == dtype and sums.tobytes() == numbers_T.tobytes()
        assert token_spans(tokens).teacher_sums(numbers_T).tobytes() == numbers_T.tobytes()
    assert token_spans(tokens).of_student_tokens.tolist() == list(range(tokens))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([1, 2, 3], [3], [(3, 1)]),
        ([1, 3], [2, 3], [(2, 2)]),
        ([1, 2, 3], [1, 2, 3], [(1, 1), (2, 2), (3, 3)]),
        # The third token of four completes a character that is one token of the other's.
        ([1, 1, 1, 2, 3], [1, 2, 3], [(1, 1), (4, 2), (5, 3)]),
        # End of turn to end of turn, however many tokens a template writes there.
        ([1, 2, 2], [2, 2, 2, 2], [(2, 1), (3, 4)]),
        # Only one side has tokens behind the text, or before it.
        ([1, 2], [1, 2, 2], [(1, 1), (2, 3)]),
        ([1, 2, 2], [1, 2], [(1, 1), (3, 2)]),
        ([0, 0, 1, 2], [1, 2], [(3, 1), (4, 2)]),
    ],
)
def test_spans_of_known_borders(student, teacher, expected):
    spans = shared_spans(student, teacher)
    assert list(zip(spans.student_counts.tolist(), spans.teacher_counts.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "end", "spans", "of_teacher"),
    [
        # A turn's end is the first of its span's tokens, and a template writes more behind it.
        ([1, 2, 2, 2], [2, 2, 2], 3, 2, 2),
        ([1, 2], [1, 2], 2, 2, 2),
        # The student's end belongs to the text's span, because the teacher's template writes none.
        ([1, 2, 2], [1, 2], 3, 2, 2),
        ([1, 1], [1], 2, 1, 1),
    ],
)
def test_the_end_of_a_turn_is_the_teachers_end(student, teacher, end, spans, of_teacher):
    shared = shared_spans(student, teacher)
    assert (shared.until(end), shared.teacher_end(end)) == (spans, of_teacher)


@given(st.integers(1, 40), st.data())
def test_with_one_tokenizer_a_turn_ends_where_it_ends(tokens, data):
    end = data.draw(st.integers(1, tokens))
    assert token_spans(tokens).teacher_end(end) == token_spans(tokens).until(end) == end


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        ([1, 2], [1, 3], "2 characters .* 3"),
        ([], [1], "never fall"),
        ([2, 1], [2], "never fall"),
        ([-1, 1], [1], "never fall"),
    ],
)
def test_ends_of_two_texts_are_refused(student, teacher, says):
    with pytest.raises(InvalidRequest, match=says):
        shared_spans(student, teacher)
