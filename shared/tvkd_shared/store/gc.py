"""Removing what is no longer live: compacted segments, what crashes left, and commits that a checkpoint holds."""

import re
import time
from dataclasses import dataclass

from tvkd_shared.store.catalog import CHECKPOINTS, COMMITS
from tvkd_shared.store.files import File
from tvkd_shared.store.segment import SEGMENTS
from tvkd_shared.store.store import Store

GRACE_SECONDS = 24 * 3600.0
"""Longer than any reader uses a segment that it found live, and than any writer waits between look and commit."""

_UNCOMMITTED_SECONDS = 3600.0
"""The grace is never shorter than this for what a live writer may be about to commit to, or to commit after."""

_UNFINISHED = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{32}(-wal|-shm)?$")
"""Names under which files are written before they get their own, and damaged files of SQLite that were set aside."""

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Collection:
    """Files that were removed, and their bytes."""

    files: int
    bytes: int


def collect(store: Store, *, grace_seconds: float = GRACE_SECONDS) -> Collection:
    """Remove what has not been live for longer than the grace. Raises StoreUnavailable when disk or service fails."""
    now = time.time()
    unfinished = now - max(grace_seconds, _UNCOMMITTED_SECONDS)
    store.write_checkpoint()
    dead = _dead_segments(store, now - grace_seconds, unfinished)
    dead += _old_commits(store, unfinished) + _leftovers(store, unfinished)
    store.files.remove([file.name for file in dead])
    with_files = {file.name.split("/")[1] for file in store.files.walk(SEGMENTS)}
    store.catalog.forget(set(store.catalog.removed) - with_files)
    store.write_checkpoint()
    return Collection(len(dead), sum(file.size for file in dead))


def _dead_segments(store: Store, removed: float, unfinished: float) -> list[File]:
    """Files of segments that were removed before a time, or that no commit names and nothing wrote since another."""
    segments: dict[str, list[File]] = {}
    for file in store.files.walk(SEGMENTS):
        segments.setdefault(file.name.split("/")[1], []).append(file)
    store.refresh()  # after the walk: a segment that was committed meanwhile is live
    dead: list[File] = []
    for name, files in segments.items():
        if name in store.catalog.removed:
            is_dead = store.catalog.removed[name] < removed
        else:
            is_dead = name not in store.catalog.segments and max(file.modified for file in files) < unfinished
        if is_dead:
            dead += files
    return dead


def _old_commits(store: Store, before: float) -> list[File]:
    """Commits and checkpoints that nobody reads when opening the store.

    The commit that a kept checkpoint ends with stays: a reader that fell behind sees that there is something to read.
    """
    checkpoints = store.files.names(CHECKPOINTS)
    if len(checkpoints) < _KEPT_CHECKPOINTS:
        return []
    oldest = checkpoints[-_KEPT_CHECKPOINTS]
    return [
        file
        for folder in (COMMITS, CHECKPOINTS)
        for file in store.files.walk(folder)
        if file.name < f"{folder}/{oldest}" and file.modified < before
    ]


def _leftovers(store: Store, before: float) -> list[File]:
    """Files that a crash left half written, and probes of conditional writes."""
    return [
        file
        for file in store.files.walk("")
        if (_UNFINISHED.search(file.name) or file.name.startswith("probe/")) and file.modified < before
    ]
