"""Puts the shaping of each completion into the batch, beside what TRL's own collator puts there."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from tvkd_client.ending import Ending
from tvkd_client.source import ServerSource, ValueSource
from tvkd_shared.errors import InvalidRequest, WrongAnswer
from tvkd_shared.shaping import Shaping
from tvkd_shared.value import Float64

SHAPING = "shaping"
"""Batch key: S of each completion, NumPy float64 [2B], chosen then rejected; in the main process a Future of it."""


class ShapingCollator:
    """Calls TRL's collator, then asks the source for the values of the same rows.

    Requests the whole completion, however much `max_length` keeps of it, so that keys are the same for every student;
    the record is cut afterwards. In the main process a thread waits for the values while the trainer works on earlier
    batches. A dataloader worker waits itself, because it already runs beside the trainer.
    """

    def __init__(
        self,
        unshaped: Callable[[list[dict[str, Any]]], dict[str, Any]],
        source: ValueSource,
        shaping: Shaping,
        *,
        ending: Ending,
        concurrency: int,
    ) -> None:
        self.unshaped = unshaped
        self.source = source
        self.shaping_of = shaping
        self._ending = ending
        self._concurrency = concurrency
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.unshaped(examples)
        prompts = [list(example["prompt_ids"]) for example in examples] * 2
        completions = [list(example[side]) for side in ("chosen_ids", "rejected_ids") for example in examples]
        kept_N = batch["completion_mask"].sum(1).tolist()
        if get_worker_info() is None:
            future: Future[Float64] = self._threads().submit(self.shaping, prompts, completions, kept_N)
            return {**batch, SHAPING: future}
        return {**batch, SHAPING: self.shaping(prompts, completions, kept_N)}

    def shaping(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], kept_N: Sequence[int]
    ) -> Float64:
        """S of each completion cut to its first `kept` tokens, float64 [N].

        Raises InvalidRequest for an empty prompt or completion, WrongAnswer when the source's records do not fit, and
        whatever the source raises.
        """
        for prompt, completion in zip(prompts, completions, strict=True):
            if not prompt or not completion:
                raise InvalidRequest(
                    f"a pair has a prompt of {len(prompt)} and a completion of {len(completion)} tokens;"
                    " each needs at least one"
                )
        records = self.source.fetch(prompts, completions)
        if len(records) != len(completions):
            raise WrongAnswer(f"the source returned {len(records)} records for {len(completions)} completions")
        shaping_N = []
        for record, completion, kept in zip(records, completions, kept_N, strict=True):
            if record.length != len(completion):
                raise WrongAnswer(
                    f"the source returned values of {record.length} tokens for a completion of {len(completion)}"
                )
            shaping_N.append(self.shaping_of.of(record, kept=kept, end=self._ending.of(completion)))
        return np.array(shaping_N, np.float64)

    def close(self) -> None:
        """Cancels requests that have not begun, and stops those that wait for a server. A later call starts again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        if isinstance(self.source, ServerSource):
            self.source.stop()

    def _threads(self) -> ThreadPoolExecutor:
        # A forked process inherits the parent's pool without its threads, and would wait for ever.
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._concurrency, "values"), os.getpid()
        return self._pool
