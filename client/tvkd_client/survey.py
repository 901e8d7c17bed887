"""What is read of the data and the sources before the first step: whether all is there, and what all of it says."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from tvkd_client.completions import Completions
from tvkd_client.roles import Sources, base_role, named_in_errors, records_of
from tvkd_client.source import ServerSource, StoreSource, ValueSource
from tvkd_client.training_settings import Role
from tvkd_shared.errors import InvalidRequest, NotCached, WrongAnswer
from tvkd_shared.shaping import log_probs
from tvkd_shared.value import Float64

ROWS_AT_ONCE = 1024

PAIRS_A_BARRIER = 64
"""Pairs that are filled between two barriers: far less work than the process group's timeout allows."""

TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Nats a token between stored and computed reference log-probs: in float32, and in bfloat16 or float16."""


def batches(rows: Any, max_length: int | None = None, size: int = ROWS_AT_ONCE) -> Iterator[Completions]:
    """The completions of a tokenised data set, some rows at a time."""
    for start in range(0, len(rows), size):
        yield Completions.cut(rows[start : start + size], max_length)


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
        missing = {
            split: sum(source.missing(*some.of(role)) for some in batches(rows)) for split, rows in splits.items()
        }
        if any(missing.values()):
            counts = ", ".join(f"{split}: {missing[split]:,} of {2 * len(rows):,}" for split, rows in splits.items())
            setting = "model_name_or_path" if role == "reference" else f"{role}_model"
            raise NotCached(
                f"{role}: store {source.place} lacks completions of model {source.teacher_id} ({counts} missing); run "
                f"`tvkd prefetch --config FILE --models` with this training's file, where {setting} names that model"
            )


def fill(sources: Sources, splits: Mapping[str, Any], accelerator: Accelerator, *, quiet: bool) -> None:
    """Has the servers compute the values of every row. Rank 0 alone asks; the others wait for it.

    Raises InvalidRequest where no role has a server.
    """
    servers = {role: source for role, source in sources.items() if isinstance(source, ServerSource)}
    if not servers:
        raise InvalidRequest("bulk fills a server's store, and no role has a server; leave it out")
    first, total = accelerator.is_main_process, sum(map(len, splits.values()))
    with tqdm(total=total, desc="Filling the value store", disable=quiet or not first) as bar:
        for rows in splits.values():
            for some in batches(rows, size=PAIRS_A_BARRIER):
                if first:
                    for role, server in servers.items():
                        with named_in_errors(role):
                            server.fill(*some.of(role))
                    bar.update(len(some.kept) // 2)
                accelerator.wait_for_everyone()


def mean_advantage(sources: Sources, rows: Any, max_length: int | None) -> float:
    """Mean of A over the kept tokens, or spans, of a tokenised data set, in nats."""
    base = base_role(sources)
    if base is None:
        raise InvalidRequest("the mean of A is taken against teacher_reference or reference; set one of them")
    total, count = 0.0, 0
    for some in batches(rows, max_length):
        teacher, started = (
            np.concatenate(some.span_sums(role, _log_probs(sources[role], some, role))) for role in ("teacher", base)
        )
        total += float((teacher - started).sum())
        count += len(teacher)
    return total / count


def check_reference(
    reference: ValueSource, rows: Any, max_length: int | None, *, tolerance: float | None, half: bool
) -> None:
    """Raises WrongAnswer when a source's log-probs of a completion differ from the columns that TRL computed.

    `tolerance` is in nats a token, None for TOLERANCE, or HALF_TOLERANCE where the student computes in half precision.
    """
    (some,) = batches(rows, max_length, len(rows))
    stored = np.array([of_tokens.sum() for of_tokens in _log_probs(reference, some, "reference")])
    computed = np.array([*rows["ref_chosen_logps"], *rows["ref_rejected_logps"]], np.float64)
    worst = float(np.max(np.abs(stored - computed) / some.kept))
    tolerance = (HALF_TOLERANCE if half else TOLERANCE) if tolerance is None else tolerance
    if not worst <= tolerance:
        raise WrongAnswer(
            f"reference: stored log-probs differ from those of the student before training by {worst:.2g} nats a "
            f"token on the first batch, more than {tolerance:g}: model {reference.teacher_id} is not "
            "this student; fill the store from its checkpoint, or allow more with reference_tolerance"
        )


def _log_probs(source: ValueSource, some: Completions, role: Role) -> list[Float64]:
    """Log-prob of each kept token of each completion."""
    records = records_of(role, source, *some.of(role))
    return [log_probs(record, kept) for record, kept in zip(records, some.kept_of(role), strict=True)]
