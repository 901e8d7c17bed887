"""Puts what the teacher and the references say of each completion into the batch, beside TRL's own collator."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from tvkd_client.ending import Ending
from tvkd_client.roles import Role, Sources, base_role
from tvkd_client.source import ServerSource
from tvkd_shared.errors import InvalidRequest, WrongAnswer
from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping, log_probs
from tvkd_shared.value import Float64

SCORES = "scores"
"""Batch key: the `Scores` of the batch's completions; in the main process a Future of them."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the roles say of a batch's 2B completions, chosen then rejected.

    shaping    S of each completion, float64 [2B], for objective tvkd
    log_probs  by role, log π of each kept token, float64 [2B, L − 1], in TRL's places: column i is that of token i + 1
               of the batch's sequences, and 0 outside the completion
    """

    shaping: Float64 | None
    log_probs: dict[Role, Float64]


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
        prompts = [list(example["prompt_ids"]) for example in examples] * 2
        completions = [list(example[side]) for side in ("chosen_ids", "rejected_ids") for example in examples]
        kept_NL = batch["completion_mask"][:, 1:].bool().numpy()
        if get_worker_info() is None:
            return {**batch, SCORES: self._threads().submit(self.scores, prompts, completions, kept_NL)}
        return {**batch, SCORES: self.scores(prompts, completions, kept_NL)}

    def scores(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], kept_NL: npt.NDArray[np.bool_]
    ) -> Scores:
        """The scores of completions of which `kept_NL` says where their first tokens, those kept, are in the batch.

        Raises InvalidRequest for an empty prompt or completion and for one of which nothing is kept, WrongAnswer when
        a source's records do not fit, and whatever a source raises.
        """
        for prompt, completion in zip(prompts, completions, strict=True):
            if not prompt or not completion:
                raise InvalidRequest(
                    f"a pair has a prompt of {len(prompt)} and a completion of {len(completion)} tokens;"
                    " each needs at least one"
                )
        records = {role: self._records(role, prompts, completions) for role in self.sources}
        kept_N = kept_NL.sum(1).tolist()
        shaping_N = None
        if self.shaping is not None:
            base = base_role(self.sources)
            bases = records[base] if base else [None] * len(completions)
            rows = zip(records["teacher"], kept_N, map(self._ending.of, completions), bases, strict=True)
            shaping_N = np.array([self.shaping.of(record, kept=k, end=end, base=b) for record, k, end, b in rows])
            records = {role: of_role for role, of_role in records.items() if role == "reference"}
        grids: dict[Role, Float64] = {}
        for role, of_role in records.items():
            grids[role] = np.zeros(kept_NL.shape)
            grids[role][kept_NL] = np.concatenate([log_probs(*row) for row in zip(of_role, kept_N, strict=True)])
        return Scores(shaping_N, grids)

    def _records(
        self, role: Role, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[Record]:
        records = self.sources[role].fetch(prompts, completions)
        if len(records) != len(completions):
            raise WrongAnswer(f"{role}: the source returned {len(records)} records for {len(completions)} completions")
        for record, completion in zip(records, completions, strict=True):
            if record.length != len(completion):
                raise WrongAnswer(
                    f"{role}: the source returned values of {record.length} tokens for a completion of"
                    f" {len(completion)}"
                )
        return records

    def close(self) -> None:
        """Cancels requests that have not begun, and stops those that wait for a server. A later call starts again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        for source in self.sources.values():
            if isinstance(source, ServerSource):
                source.stop()

    def _threads(self) -> ThreadPoolExecutor:
        # A forked process inherits the parent's pool without its threads, and would wait for ever.
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._concurrency, "values"), os.getpid()
        return self._pool
