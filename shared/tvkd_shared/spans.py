"""Spans: what two tokenizers' tokens of one text can be compared on. NumPy only.

A student's and a teacher's tokens divide a completion at different places. A span is a smallest piece of the text that
starts and ends where a token of both does, with the tokens of each side in it. A log-prob of a span is the sum over its
tokens, whichever tokenizer divided it, so that the teacher's sum is a target for the student's.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvkd_shared.errors import InvalidRequest

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """N spans of a completion that is T tokens of the student's and U of the teacher's.

    `student_counts` and `teacher_counts` are int64 [N] and rise strictly to T and U: how many tokens of each side end
    with span n or before it. So each token is in exactly one span.
    """

    student_counts: Counts
    teacher_counts: Counts

    @property
    def of_student_tokens(self) -> Counts:
        """The span of each of the student's tokens, int64 [T]."""
        return np.repeat(np.arange(len(self.student_counts)), np.diff(self.student_counts, prepend=0))

    def student_sums(self, numbers_T: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """The sum over each span's tokens of the student's, [N] in the numbers' own dtype."""
        return _sums(numbers_T, self.student_counts)

    def teacher_sums(self, numbers_U: npt.ArrayLike) -> npt.NDArray[np.floating]:
        """The sum over each span's tokens of the teacher's, [N] in the numbers' own dtype."""
        return _sums(numbers_U, self.teacher_counts)

    def within(self, kept: int) -> "Spans":
        """The spans that lie whole within the student's first `kept` tokens. There may be none."""
        count = int(np.searchsorted(self.student_counts, kept, "right"))
        return Spans(self.student_counts[:count], self.teacher_counts[:count])

    def until(self, end: int) -> int:
        """How many spans there are up to and including the one that has the student's token number `end`, from 1."""
        return int(np.searchsorted(self.student_counts, end)) + 1

    def teacher_end(self, end: int) -> int:
        """How many of the teacher's tokens go up to its end of turn, where the student's token number `end` ends it.

        An end-of-turn token that begins a span is the first token of that span for the teacher too. Where the span has
        text before it, the teacher's turn ends with the span.
        """
        span = self.until(end) - 1
        student_before, teacher_before = (
            int(counts[span - 1]) if span else 0 for counts in (self.student_counts, self.teacher_counts)
        )
        return teacher_before + 1 if end == student_before + 1 else int(self.teacher_counts[span])


def token_spans(tokens: int) -> Spans:
    """The spans of a completion that both sides divide into the same tokens: each token is one."""
    counts = np.arange(1, tokens + 1)
    return Spans(counts, counts)


def shared_spans(student_ends: npt.ArrayLike, teacher_ends: npt.ArrayLike) -> Spans:
    """The spans of a completion from the ends of each side's tokens, as `tvkd_shared.text.TokenizedItem` has them.

    Tokens that stand for no text belong to the span of the next text, and behind the text, as an end-of-turn token, to
    a last span of their own. Where only one side has such tokens behind the text, they belong to the last text's span.
    Raises InvalidRequest when the ends are not those of one text.
    """
    student_T, teacher_U = (np.asarray(ends, np.int64) for ends in (student_ends, teacher_ends))
    for ends in (student_T, teacher_U):
        if not ends.size or ends[0] < 0 or (np.diff(ends) < 0).any():
            raise InvalidRequest("the ends of a completion's tokens have to be one or more numbers that never fall")
    if student_T[-1] != teacher_U[-1]:
        raise InvalidRequest(
            f"the student's tokens stand for a text of {student_T[-1]} characters and the teacher's for one of "
            f"{teacher_U[-1]}: they have to be of one text"
        )
    borders = np.intersect1d(student_T, teacher_U)
    borders = borders[borders > 0]
    # The first token with an end completes it; those behind it that have the same end stand for no text.
    student_counts, teacher_counts = (np.searchsorted(ends, borders) + 1 for ends in (student_T, teacher_U))
    counts = len(student_T), len(teacher_U)
    if student_counts[-1] < counts[0] and teacher_counts[-1] < counts[1]:
        student_counts, teacher_counts = np.append(student_counts, counts[0]), np.append(teacher_counts, counts[1])
    else:
        student_counts[-1], teacher_counts[-1] = counts
    return Spans(student_counts, teacher_counts)


def _sums(numbers: npt.ArrayLike, ends_N: Counts) -> npt.NDArray[np.floating]:
    values = np.asarray(numbers)
    sums: npt.NDArray[np.floating] = np.add.reduceat(values[: ends_N[-1]], np.append(0, ends_N[:-1]))
    return sums
