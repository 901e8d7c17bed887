"""Removing what is no longer live: compacted segments, what crashes left, and commits that a checkpoint holds."""

import time
from dataclasses import dataclass

from tvkd_server.store.publisher import Publisher
from tvkd_shared.store.catalog import CHECKPOINTS, COMMITS, SEGMENTS
from tvkd_shared.store.files import File

GRACE_SECONDS = 24 * 3600.0
"""Longer than any reader uses a segment that it found live, and than any writer waits between look and commit."""

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Collected:
    files: int
    bytes: int


def collect(store: Publisher, *, grace_seconds: float = GRACE_SECONDS) -> Collected:
    """Remove what has not been live for longer than the grace. Raises StoreUnavailable when disk or service fails."""
    before = time.time() - grace_seconds
    store.checkpoint()
    store.refresh()
    dead = _dead_segments(store, before) + _old_commits(store, before) + _leftovers(store, before)
    store.files.remove([file.name for file in dead])
    with_files = {file.name.split("/")[1] for file in store.files.walk(SEGMENTS)}
    store.catalog.forget(set(store.catalog.removed) - with_files)
    store.checkpoint()
    return Collected(len(dead), sum(file.size for file in dead))


def _dead_segments(store: Publisher, before: float) -> list[File]:
    """Files of segments that were removed before, or that no commit has named since."""
    files: dict[str, list[File]] = {}
    for file in store.files.walk(SEGMENTS):
        files.setdefault(file.name.split("/")[1], []).append(file)
    store.refresh()  # after the walk: a segment that was committed meanwhile is live
    dead: list[File] = []
    for name, own in files.items():
        since = store.catalog.removed.get(name, max(file.modified for file in own))
        if name not in store.catalog.segments and since < before:
            dead += own
    return dead


def _old_commits(store: Publisher, before: float) -> list[File]:
    """Commits and checkpoints that no opening reads. The commit that a kept checkpoint ends with stays.

    By it a reader that fell behind sees that there is something to read.
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


def _leftovers(store: Publisher, before: float) -> list[File]:
    """Files that a crash left half written, and probes of conditional writes."""
    return [
        file
        for file in store.files.walk("")
        if (file.name.rsplit("/", 1)[-1].startswith(".") or file.name.startswith("probe/")) and file.modified < before
    ]
