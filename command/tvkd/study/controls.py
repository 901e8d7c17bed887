"""Controls: sources that answer with numbers of the same size which know nothing of the completion's content.

shuffled  each pair gets the numbers of another pair, whose completions differ in length by as much
length    each token gets the same number, so that a completion's sum is its length times what length explains
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from tvkd_client.roles import base_role
from tvkd_client.source import ValueSource
from tvkd_client.training_settings import Role
from tvkd_shared.record import Record
from tvkd_shared.shaping import log_probs
from tvkd_shared.value import Float64

BLOCK = 8
"""Pairs of one length difference, neighbours by length, among which values are exchanged."""

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """Prompts, and chosen and rejected completions, of the pairs that are trained on."""

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    @classmethod
    def of(cls, tokens: Dataset) -> "TrainingPairs":
        return cls(*(tokens[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids")))

    def lengths(self) -> tuple[Float64, Float64]:
        """Tokens of the chosen and of the rejected completions, float64 [N] each."""
        chosen, rejected = (np.array(list(map(len, side)), np.float64) for side in (self.chosen, self.rejected))
        return chosen, rejected


def partners(chosen: Sequence[float], rejected: Sequence[float], seed: int) -> dict[int, int]:
    """For each pair the index of another, each named once: one with the same difference in length, and like lengths.

    A difference that only one pair has is put together with the next one. Raises ValueError for fewer than two pairs.
    """
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} pair has no other to take values from")
    chance = random.Random(seed)  # noqa: S311 - a permutation, not a secret
    order = sorted(range(len(chosen)), key=lambda i: (chosen[i] - rejected[i], chosen[i], chance.random()))
    groups = [list(group) for _, group in groupby(order, key=lambda i: chosen[i] - rejected[i])]
    blocks = _joined([group[i : i + BLOCK] for group in groups for i in range(0, len(group), BLOCK)])
    return {index: other for block in blocks for index, other in zip(block, block[1:] + block[:1], strict=True)}


def _joined(blocks: list[list[int]]) -> list[list[int]]:
    """The blocks, with each of a single pair put to its neighbour."""
    joined: list[list[int]] = []
    for block in blocks:
        if joined and (len(block) == 1 or len(joined[-1]) == 1):
            joined[-1] = joined[-1] + block
        else:
            joined.append(block)
    return joined


class ShuffledSource:
    """Answers for each completion of a pair with its partner's record, stretched to the completion's length.

    States are taken at the same share of the way, so the first and the last state are the partner's own.
    """

    def __init__(self, source: ValueSource, pairs: TrainingPairs, partner: Mapping[int, int]) -> None:
        self._source = source
        self._answered_by = _answered_by(pairs, partner)

    @property
    def teacher_id(self) -> str:
        return self._source.teacher_id

    def fetch(self, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[Record]:
        """Raises KeyError for a completion of no pair that has a partner."""
        records = self._source.fetch(*_others(self._answered_by, prompts, completions))
        return [stretched(record, len(completion)) for record, completion in zip(records, completions, strict=True)]


def stretched(record: Record, length: int) -> Record:
    """The record as one of `length` tokens: token t has the numbers of the token at the same share of the way."""
    tokens = places(record.length, length)
    numbers_SK = record.numbers[np.append(tokens, record.length)]
    return Record(record.columns, numbers_SK)


def places(given: int, wanted: int) -> npt.NDArray[np.int64]:
    """For each of `wanted` tokens the one of `given` tokens at the same share of the way, from 0 on."""
    return np.arange(wanted) * given // wanted


class AdvantageSource:
    """A teacher whose advantage over the base is another pair's, stretched, or the same number for every token.

    lp_T(t) = A'_t + lp_base(t), so that whatever reads the advantage against `base` reads A'.
    """

    def __init__(
        self,
        teacher: ValueSource,
        base: ValueSource,
        pairs: TrainingPairs,
        advantage: float | Mapping[int, int],
    ) -> None:
        """`advantage` is the number, in nats a token, or each pair's partner."""
        self._teacher, self._base = teacher, base
        self._constant = advantage if isinstance(advantage, float) else None
        self._answered_by = {} if isinstance(advantage, float) else _answered_by(pairs, advantage)

    @property
    def teacher_id(self) -> str:
        return self._teacher.teacher_id

    def fetch(self, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[Record]:
        """Raises KeyError for a completion that is of no pair."""
        bases = [log_probs(record, record.length) for record in self._base.fetch(prompts, completions)]
        if self._constant is not None:
            return [_of_log_probs(base + self._constant) for base in bases]
        others = _others(self._answered_by, prompts, completions)
        given = [
            advantages(teacher, base)
            for teacher, base in zip(self._teacher.fetch(*others), self._base.fetch(*others), strict=True)
        ]
        return [_of_log_probs(base + A[places(len(A), len(base))]) for base, A in zip(bases, given, strict=True)]


class LengthSource:
    """Φ(s_t) = weight · t in place of a teacher's value, so that with γ = 1 S is the weight times the length."""

    teacher_id = "length"

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = weight

    def fetch(self, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[Record]:
        states = [np.arange(len(completion) + 1, dtype=np.float32) * self._weight for completion in completions]
        return [
            Record.of({1.0: t.astype(np.float32)}, np.zeros(len(t) - 1, np.float32), np.zeros(len(t), np.float32))
            for t in states
        ]


def controlled(
    control: str,
    sources: Mapping[Role, ValueSource],
    pairs: TrainingPairs,
    *,
    relative: bool,
    margins: Float64,
    mean_advantage: float | None,
    seed: int,
) -> dict[Role, ValueSource]:
    """The sources of a control of an arm that reads `sources`.

    relative        whether the arm reads the teacher's advantage
    margins         the arm's margin S(chosen) − S(rejected), or ΣA's, of each pair: what length explains of it is kept
    mean_advantage  for objective token, whose constant is the mean of A; None for the others
    """
    base = base_role(sources)
    chosen, rejected = pairs.lengths()
    if control == "shuffled":
        partner = partners(chosen.tolist(), rejected.tolist(), seed)
        if relative and base is not None:
            return {**sources, "teacher": AdvantageSource(sources["teacher"], sources[base], pairs, partner)}
        return {**sources, "teacher": ShuffledSource(sources["teacher"], pairs, partner)}
    weight = slope(margins, chosen - rejected) if mean_advantage is None else mean_advantage
    if relative and base is not None:
        return {**sources, "teacher": AdvantageSource(sources["teacher"], sources[base], pairs, weight)}
    return {**sources, "teacher": LengthSource(weight)}


def slope(margins: Float64, differences: Float64) -> float:
    """b of the least squares fit margin = b · difference in length, through 0; 0 where no pair differs in length."""
    squares = float(differences @ differences)
    return float(margins @ differences) / squares if squares else 0.0


def advantages(teacher: Record, base: Record) -> Float64:
    """A_t of each token, in nats, float64 [T]."""
    return log_probs(teacher, teacher.length) - log_probs(base, base.length)


def _of_log_probs(numbers_T: Float64) -> Record:
    """A record that says these log-probs: values of 0, and the log-probs as action logits."""
    zeros = np.zeros(len(numbers_T) + 1, np.float32)
    return Record.of({1.0: zeros}, numbers_T.astype(np.float32), zeros)


_Answers = dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[TokenIds, TokenIds]]


def _answered_by(pairs: TrainingPairs, partner: Mapping[int, int]) -> _Answers:
    return {
        (tuple(pairs.prompts[row]), tuple(side[row])): (pairs.prompts[other], side[other])
        for side in (pairs.chosen, pairs.rejected)
        for row, other in partner.items()
    }


def _others(
    answered_by: _Answers, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> tuple[list[TokenIds], list[TokenIds]]:
    others = [answered_by[tuple(p), tuple(c)] for p, c in zip(prompts, completions, strict=True)]
    return [prompt for prompt, _ in others], [completion for _, completion in others]
