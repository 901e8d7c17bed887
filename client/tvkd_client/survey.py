"""What is read of the data and the sources before the first step: whether all is there, and what all of it says."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from tvkd_client.roles import Sources, base_role
from tvkd_client.source import StoreSource, ValueSource
from tvkd_shared.errors import InvalidRequest, NotCached
from tvkd_shared.shaping import log_probs
from tvkd_shared.value import Float64

ROWS_AT_ONCE = 1024

Pairs = tuple[list[list[int]], list[list[int]]]
"""Prompts, and the completion after each."""


def batches(rows: Any, size: int = ROWS_AT_ONCE) -> Iterator[Pairs]:
    """The pairs of a tokenised data set, some rows at a time: all their chosen completions, then the rejected ones."""
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield chunk["prompt_ids"] * 2, chunk["chosen_ids"] + chunk["rejected_ids"]


def check_data(given: Any, *, bulk: bool = False) -> None:
    """Raises InvalidRequest for images, and for a stream where `bulk` is asked, in a data set or a dict of them."""
    for rows in given.values() if isinstance(given, dict) else [given]:
        if not isinstance(rows, Dataset | IterableDataset):
            continue
        if bulk and isinstance(rows, IterableDataset):
            raise InvalidRequest("bulk needs data sets whose length is known, and a given one streams; leave it out")
        if {"image", "images"} & set(next(iter(rows), {})):
            raise InvalidRequest("a data set has images, and the teacher has values for text only; leave images out")


def check_complete(sources: Sources, splits: Mapping[str, Any]) -> None:
    """Raises NotCached, with the counts of each split, when a store lacks completions of the tokenised data sets."""
    for role, source in sources.items():
        if not isinstance(source, StoreSource):
            continue
        missing = {split: sum(source.missing(*pairs) for pairs in batches(rows)) for split, rows in splits.items()}
        if any(missing.values()):
            counts = ", ".join(f"{split}: {missing[split]:,} of {2 * len(rows):,}" for split, rows in splits.items())
            raise NotCached(
                f"{role}: store {source.place} lacks completions of model {source.teacher_id} ({counts} missing); run "
                "`tvkd prefetch --config FILE` with this training's file, or `tvkd prefetch --model` with that model"
            )


def kept_tokens(pairs: Pairs, max_length: int | None) -> list[int]:
    """How many of each completion's first tokens are left of prompt and completion cut to `max_length`."""
    return [
        len(completion) if max_length is None else min(len(completion), max_length - len(prompt))
        for prompt, completion in zip(*pairs, strict=True)
    ]


def mean_advantage(sources: Sources, rows: Any, max_length: int | None) -> float:
    """Mean of A_t over the kept tokens of a tokenised data set, in nats."""
    base = base_role(sources)
    if base is None:
        raise InvalidRequest("the mean of A is taken against teacher_reference or reference; set one of them")
    total, count = 0.0, 0
    for pairs in batches(rows):
        kept = kept_tokens(pairs, max_length)
        teacher, started = (_log_probs(sources[role], pairs, kept) for role in ("teacher", base))
        total += float((teacher - started).sum())
        count += sum(kept)
    return total / count


def reference_difference(reference: ValueSource, rows: Any, max_length: int | None) -> float:
    """Largest difference between a source's log-probs of a completion and the columns that TRL computed, a token."""
    (pairs,) = batches(rows, len(rows))
    kept = kept_tokens(pairs, max_length)
    stored = _log_probs(reference, pairs, kept)
    sums = np.add.reduceat(stored, np.cumsum([0, *kept[:-1]]))
    computed = np.array([*rows["ref_chosen_logps"], *rows["ref_rejected_logps"]], np.float64)
    return float(np.max(np.abs(sums - computed) / kept))


def _log_probs(source: ValueSource, pairs: Pairs, kept: Sequence[int]) -> Float64:
    """Log-prob of each kept token of all the completions, one after the other."""
    records = source.fetch(*pairs)
    return np.concatenate([log_probs(record, tokens) for record, tokens in zip(records, kept, strict=True)])
