"""Checking every byte of a store: what a reader would find damaged one day is found now."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from tvkd_shared.store import document
from tvkd_shared.store.block import BASE, Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.catalog import CHECKPOINTS, COMMITS
from tvkd_shared.store.certificate import CERTIFICATES
from tvkd_shared.store.entry import SEGMENTS, SegmentEntry
from tvkd_shared.store.format import STORE_FILE
from tvkd_shared.store.index import Index
from tvkd_shared.store.log import LogReader
from tvkd_shared.store.reader import TEACHERS, StoreReader
from tvkd_shared.store.segment import METADATA, Segment, entry_of, metadata_crc32

_WRITTEN_SECONDS = 0.5
"""Longer than a record's bytes stay half written while its writer lives."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file, or a part of it, and what is wrong with it."""

    file: str
    what: str


def verify(
    store: StoreReader, *, progress: Callable[[list[SegmentEntry]], Iterable[SegmentEntry]] = iter
) -> list[Problem]:
    """Every damaged file of a store, none where all is well, also beside servers, compaction and gc.

    Values that are damaged are not served, and are computed again when they are asked for; `compact` leaves them out.
    Raises StoreUnavailable when disk or service fails.
    """
    store.refresh()
    problems = _documents(store) + _log(store) + _index(store)
    done: set[str] = set()
    while left := [entry for entry in store.catalog.segments.values() if entry.name not in done]:
        for entry in progress(left):
            done.add(entry.name)
            if found := _segment(store, entry):
                store.refresh()
                if entry.name in store.catalog.segments:  # else what is sound of it is in another, found at the end
                    problems += found
    return problems


def _documents(store: StoreReader) -> list[Problem]:
    folders = (COMMITS, CHECKPOINTS, TEACHERS, CERTIFICATES)
    names = [STORE_FILE, *(f"{folder}/{name}" for folder in folders for name in store.files.names(folder))]
    problems = []
    for name in names:
        try:
            document.from_bytes(store.files.read(name), name)
        except Damaged as damage:
            problems.append(Problem(name, str(damage)))
        except FileNotFoundError as damage:
            folder, _, own = name.rpartition("/")
            if not folder or own in store.files.names(folder):  # else it was removed, as gc does
                problems.append(Problem(name, str(damage)))
    known = {problem.file for problem in problems}
    return problems + [Problem(name, "is lost") for name in sorted(store.catalog.damaged - known)]


def _log(store: StoreReader) -> list[Problem]:
    log = LogReader(store.files)
    before = _unread(store, log)
    if any(rest for _, _, rest in before.values()):
        time.sleep(_WRITTEN_SECONDS)
    return [
        Problem(name, f"{skipped + len(rest)} bytes are no record: damaged, or left half written by a crash")
        for name, (end, skipped, rest) in _unread(store, log).items()
        if skipped or (rest and before.get(name) == (end, skipped, rest))  # else a record is being written
    ]


def _unread(store: StoreReader, log: LogReader) -> dict[str, tuple[int, int, bytes]]:
    """By file of the log: where its last sound record ends, bytes before that in none, and the bytes behind it."""
    log.pending()
    found = {}
    for name, file in log.read.items():
        with suppress(FileNotFoundError):  # sealed meanwhile
            found[name] = file.end, file.skipped, store.files.read(name, file.end)
    return found


def _index(store: StoreReader) -> list[Problem]:
    path = store.files.index
    if path.exists() and Index.load(path) is None:
        return [Problem(path.name, "does not match its checksum; it is made anew from the segments")]
    return []


def _segment(store: StoreReader, entry: SegmentEntry) -> list[Problem]:
    folder = f"{SEGMENTS}/{entry.name}"
    problems = []

    def check(what: str, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except (Damaged, FileNotFoundError, ValueError, LookupError, TypeError) as damage:
            problems.append(Problem(f"{folder}/{what}".rstrip("/"), str(damage)))

    segment = Segment(store.files, entry, ChunkCache(0))
    check("keys", segment.keys)
    check("offsets", segment.offsets)
    check("values", lambda: _finite(segment))
    for name in METADATA:
        check(name, partial(store.files.read, f"{folder}/{name}"))
    if not problems:
        check("", lambda: _metadata(store, entry))
    return problems


def _finite(segment: Segment) -> None:
    values_SK = segment.values()
    finite_SK = np.isfinite(values_SK)
    if segment.entry.temperature == BASE:
        finite_SK[segment.offsets()[1:] - 1, 1] ^= True
    if not finite_SK.all():
        raise Damaged("there are numbers that are not finite")


def _metadata(store: StoreReader, entry: SegmentEntry) -> None:
    folder = f"{SEGMENTS}/{entry.name}"
    contents = {name: store.files.read(f"{folder}/{name}") for name in METADATA}
    if metadata_crc32(contents) != entry.metadata_crc32:
        raise Damaged("its zarr.json files do not match the checksum in its commit")
    said = entry_of(store.files, entry.name)
    same = ("teacher", "temperature", "records", "states", "bytes")
    if any(getattr(said, name) != getattr(entry, name) for name in same):
        raise Damaged("it is not what its commit says of it, or has files more or less")
