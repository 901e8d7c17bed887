"""Puts what the teacher and the references say of each completion into the batch, beside TRL's own collator."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from tvkd_client.completions import Completions
from tvkd_client.roles import Sources, base_role, records_of
from tvkd_client.source import ServerSource
from tvkd_client.training_settings import Role
from tvkd_shared.ending import Ending
from tvkd_shared.record import Record
from tvkd_shared.shaping import POTENTIALS, Shaping, log_probs
from tvkd_shared.spans import Spans
from tvkd_shared.value import Float64

SCORES = "scores"
"""Batch key: the `Scores` of the batch's completions; in the main process a Future of them."""

SPANS = "spans"
"""Batch key, where the teacher has a tokenizer of its own: see `span_columns`."""

Mask = npt.NDArray[np.bool_]
"""[2B, L − 1]: which places of a batch have a token that is kept of a completion."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the roles say of a batch's 2B completions, chosen then rejected.

    shaping    S of each completion, float64 [2B], for objective tvkd
    log_probs  by role, log π of each kept token, float64 [2B, L − 1], in TRL's places: column i is that of token i + 1
               of the batch's sequences, and 0 outside the completion. Of a model with other tokens, the sum over each
               span, in the place of the span's last token
    """

    shaping: Float64 | None
    log_probs: dict[Role, Float64]

    def reference(self, device: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Stored reference log-probs of chosen and rejected, float32 [B] each, and of each token, [2B, L − 1]."""
        stored_NL = self.log_probs["reference"]
        chosen, rejected = (torch.from_numpy(half.sum(1)).float().to(device) for half in np.split(stored_NL, 2))
        return (chosen, rejected), torch.from_numpy(stored_NL).float().to(device)


def resolved(scores: "Scores | Future[Scores]") -> tuple[Scores, float]:
    """The scores, and the seconds spent waiting for them."""
    if not isinstance(scores, Future):
        return scores, 0.0
    start = time.perf_counter()
    return scores.result(), time.perf_counter() - start


class ScoreCollator:
    """Calls TRL's collator, then asks each role's source for the values of the same rows.

    Requests the whole completion, however much `max_length` keeps of it, so that keys are the same for every student;
    the record is cut afterwards. In the main process a thread waits for the values while the trainer works on earlier
    batches. A dataloader worker waits itself, because it already runs beside the trainer.

    `shaping` is None unless S is wanted; then the log-probs of teacher and base are left out.
    """

    def __init__(
        self,
        unscored: Callable[[list[dict[str, Any]]], dict[str, Any]],
        sources: Sources,
        shaping: Shaping | None,
        *,
        ending: Ending,
        concurrency: int,
    ) -> None:
        self.unscored = unscored
        self.sources = sources
        self.shaping = shaping
        self._ending = ending
        self._concurrency = concurrency
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.unscored(examples)
        kept_NL = batch["completion_mask"][:, 1:].bool().numpy()
        completions = Completions(
            {name: [example[name] for example in examples] for name in examples[0]}, kept_NL.sum(1).tolist()
        )
        if completions.spans is not None and self.shaping is None:
            batch[SPANS] = torch.from_numpy(span_columns(completions.spans, kept_NL))
        if get_worker_info() is None:
            return {**batch, SCORES: self._threads().submit(self.scores, completions, kept_NL)}
        return {**batch, SCORES: self.scores(completions, kept_NL)}

    def scores(self, completions: Completions, kept_NL: Mask) -> Scores:
        """The scores of completions of which `kept_NL` says where their first tokens, those kept, are in the batch.

        Raises WrongAnswer when a source's records do not fit, and whatever a source raises.
        """
        records = {role: records_of(role, source, *completions.of(role)) for role, source in self.sources.items()}
        shaping_N = None
        if self.shaping is not None:
            shaping_N = np.array(self._shaping(self.shaping, completions, records))
            records = {role: of_role for role, of_role in records.items() if role == "reference"}
        grids: dict[Role, Float64] = {}
        for role, of_role in records.items():
            numbers = list(map(log_probs, of_role, completions.kept_of(role)))
            places = kept_NL
            if completions.spans is not None and role != "reference":
                numbers = completions.span_sums(role, numbers)
                places = span_columns(completions.spans, kept_NL) == np.arange(kept_NL.shape[1])
            grids[role] = np.zeros(kept_NL.shape)
            grids[role][places] = np.concatenate(numbers)
        return Scores(shaping_N, grids)

    def _shaping(
        self, shaping: Shaping, completions: Completions, records: Mapping[Role, Sequence[Record]]
    ) -> list[float]:
        """S of each completion. Where the base of an advantage has other tokens, A and Φ are those of spans."""
        base = base_role(self.sources)
        teacher_ends, span_ends = completions.ends(self._ending.of)
        if base == "reference" and completions.spans is not None and POTENTIALS[shaping.potential].relative:
            teacher, started = (
                completions.span_sums(role, list(map(log_probs, records[role], completions.kept_of(role))))
                for role in ("teacher", base)
            )
            advantages = [of_teacher - of_base for of_teacher, of_base in zip(teacher, started, strict=True)]
            return [shaping.of_advantages(A, end=end) for A, end in zip(advantages, span_ends, strict=True)]
        bases = records[base] if base else [None] * len(teacher_ends)
        rows = zip(records["teacher"], completions.kept_of("teacher"), teacher_ends, bases, strict=True)
        return [shaping.of(record, kept=kept, end=end, base=started) for record, kept, end, started in rows]

    def close(self) -> None:
        """Cancels requests that have not begun, and stops those that wait for a server. A later call starts again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        for source in self.sources.values():
            if isinstance(source, ServerSource):
                source.client.stop()

    def _threads(self) -> ThreadPoolExecutor:
        # A forked process inherits the parent's pool without its threads, and would wait for ever.
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._concurrency, "values"), os.getpid()
        return self._pool


def span_columns(spans: Sequence[Spans], kept_NL: Mask) -> npt.NDArray[np.int64]:
    """The column of the last token of each kept token's span, int64 [2B, L − 1]; L − 1 for what is in no span."""
    columns_NL = np.full(kept_NL.shape, kept_NL.shape[1], np.int64)
    for row, of_row, kept_L in zip(columns_NL, spans, kept_NL, strict=True):
        places = np.flatnonzero(kept_L)
        of_tokens = of_row.of_student_tokens
        row[places[: len(of_tokens)]] = places[of_row.student_counts - 1][of_tokens]
    return columns_NL
