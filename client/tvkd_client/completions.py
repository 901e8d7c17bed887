"""The completions of tokenised rows, in the tokens of each role's model, and the spans that both sides share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvkd_client.token_rows import TOKEN_COLUMNS
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.spans import Spans
from tvkd_shared.value import Float64

TEACHER_COLUMNS = ("teacher_prompt_ids", "teacher_chosen_ids", "teacher_rejected_ids")
"""Columns of the teacher's token ids, where its tokenizer is another than the student's."""

SPAN_COLUMNS = ("chosen_spans", "rejected_spans")
"""Columns of spans: their counts of the student's tokens, and of the teacher's, as in `Spans`."""

Pairs = tuple[list[list[int]], list[list[int]]]
"""Prompts, and the completion after each."""


class Completions:
    """2N completions of N rows: all the chosen ones, then the rejected ones.

    `columns` are those of the rows: `TOKEN_COLUMNS`, and with a tokenizer of the teacher's own also `TEACHER_COLUMNS`
    and `SPAN_COLUMNS`. `kept` is how many of each completion's first tokens, the student's, are left after truncation.

    kept     int, one for each completion; all its tokens where nothing is said
    spans    the spans that lie whole within the kept tokens; None where teacher and student have one tokenizer

    Raises InvalidRequest for an empty prompt or completion, and for one of which no whole span is kept.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], kept: Sequence[int] | None = None) -> None:
        self._columns = columns
        students = self.of("reference")
        for prompt, completion in zip(*students, strict=True):
            if not prompt or not completion:
                raise InvalidRequest(
                    f"a pair has a prompt of {len(prompt)} and a completion of {len(completion)} tokens;"
                    " each needs at least one"
                )
        self.kept = [len(completion) for completion in students[1]] if kept is None else list(kept)
        self._whole = (
            [spans_of(cell) for name in SPAN_COLUMNS for cell in columns[name]] if SPAN_COLUMNS[0] in columns else None
        )
        self.spans = self._whole and list(map(_within, self._whole, self.kept))

    @classmethod
    def cut(cls, columns: Mapping[str, Sequence[Any]], max_length: int | None) -> "Completions":
        """The completions as `max_length` tokens of the student's prompt and completion leave them."""
        if max_length is None:
            return cls(columns)
        prompts = columns["prompt_ids"]
        sides = [columns[side] for side in ("chosen_ids", "rejected_ids")]
        return cls(
            columns, [min(len(c), max_length - len(p)) for side in sides for p, c in zip(prompts, side, strict=True)]
        )

    def of(self, role: str) -> Pairs:
        """Whole prompts and completions in the tokens that a role's model has values for."""
        teachers = role != "reference" and TEACHER_COLUMNS[0] in self._columns
        prompt, chosen, rejected = (
            [list(ids) for ids in self._columns[name]] for name in (TEACHER_COLUMNS if teachers else TOKEN_COLUMNS)
        )
        return prompt * 2, chosen + rejected

    def kept_of(self, role: str) -> list[int]:
        """How many of each completion's first tokens are read of a role: of the teacher's those of whole spans."""
        if self.spans is None or role == "reference":
            return self.kept
        return [int(spans.teacher_counts[-1]) for spans in self.spans]

    def span_sums(self, role: str, numbers: Sequence[Float64]) -> list[Float64]:
        """Sums over each completion's spans of a role's numbers of its tokens; the numbers where spans are tokens."""
        if self.spans is None:
            return list(numbers)
        sums = [spans.student_sums if role == "reference" else spans.teacher_sums for spans in self.spans]
        return [np.asarray(sum_(of_tokens), np.float64) for sum_, of_tokens in zip(sums, numbers, strict=True)]

    def ends(self, ending: Callable[[Sequence[int]], int | None]) -> tuple[list[int | None], list[int | None]]:
        """Up to where each completion's turn goes, as counts of the teacher's tokens, and of spans; None if unended.

        `ending` gives the same as a count of the student's tokens.
        """
        ends = list(map(ending, self.of("reference")[1]))
        if self._whole is None:
            return ends, ends
        places = list(zip(self._whole, ends, strict=True))
        of_teacher = [None if end is None else spans.teacher_end(end) for spans, end in places]
        return of_teacher, [None if end is None else spans.until(end) for spans, end in places]


def spans_of(cell: Sequence[Sequence[int]]) -> Spans:
    """The spans in a cell of SPAN_COLUMNS."""
    student, teacher = (np.asarray(counts, np.int64) for counts in cell)
    return Spans(student, teacher)


def _within(spans: Spans, kept: int) -> Spans:
    whole = spans.within(kept)
    if not len(whole.student_counts):
        raise InvalidRequest(
            f"{kept} of a completion's {spans.student_counts[-1]} tokens are left after truncation, and its first span "
            f"of both tokenizers has {spans.student_counts[0]}; raise max_length or drop the pair"
        )
    return whole
