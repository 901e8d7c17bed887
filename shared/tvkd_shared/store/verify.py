"""Checking every byte of a store: what a reader would find damaged one day is found now."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np

from tvkd_shared.store import document, write_ahead_log
from tvkd_shared.store.block import Damaged, check
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.catalog import CHECKPOINTS, COMMITS
from tvkd_shared.store.certificate import CERTIFICATES
from tvkd_shared.store.format import STORE_FILE
from tvkd_shared.store.index import Index
from tvkd_shared.store.reader import TEACHERS, StoreReader
from tvkd_shared.store.recent import CHECKSUM_FILE, FILE
from tvkd_shared.store.segment import METADATA, SEGMENTS, Segment, SegmentEntry, metadata_crc32, read_attributes

_ATTEMPTS, _PAUSE_SECONDS = 4, 0.2

_kept_open: list[int] = []


@dataclass(frozen=True, slots=True)
class Damage:
    """A file, or a part of it, and what is wrong with it."""

    file: str
    what: str


def verify(
    store: StoreReader, *, progress: Callable[[list[SegmentEntry]], Iterable[SegmentEntry]] = iter
) -> list[Damage]:
    """Every damaged file of a store, none where all is well, also beside servers, compaction and gc.

    Numbers that are damaged are not served, and are computed again when they are asked for; `compact` leaves them out.
    Raises StoreUnavailable when disk or service fails.
    """
    store.refresh()
    damage = _documents(store) + _recent(store) + _index(store)
    done: set[str] = set()
    while entries := [entry for entry in store.catalog.segments.values() if entry.name not in done]:
        for entry in progress(entries):
            done.add(entry.name)
            if found := _segment(store, entry):
                store.refresh()
                if entry.name in store.catalog.segments:  # otherwise its blocks are in another segment
                    damage += found
    return damage


def _documents(store: StoreReader) -> list[Damage]:
    folders = (COMMITS, CHECKPOINTS, TEACHERS, CERTIFICATES)
    names = [STORE_FILE, *(f"{folder}/{name}" for folder in folders for name in store.files.names(folder))]
    damage = []
    for name in names:
        try:
            document.from_bytes(store.files.read(name), name)
        except Damaged as error:
            damage.append(Damage(name, str(error)))
        except FileNotFoundError as error:
            folder, _, file = name.rpartition("/")
            if not folder or file in store.files.names(folder):  # otherwise it was removed, as gc does
                damage.append(Damage(name, str(error)))
    known = {one.file for one in damage}
    return damage + [Damage(name, "is lost") for name in sorted(store.catalog.damaged - known)]


def _recent(store: StoreReader) -> list[Damage]:
    """Damage of the SQLite file: of its rows, of its structure, and of any byte as of the last checkpoint."""
    if store.recent is None or not store.recent.path.exists():
        return []
    damage = []
    try:
        damage = [
            Damage(f"{FILE}/{row.id}", "a row does not match its checksum")
            for row in store.recent.rows()
            if row.numbers is None
        ]
        damage += [Damage(FILE, line) for line in store.recent.integrity() if line != "ok"]
    except Damaged as error:
        damage.append(Damage(FILE, str(error)))
    for _ in range(_ATTEMPTS):  # a writer may change a file between two reads
        wrong = [*_main_file(store, store.recent.path), *write_ahead_log.check(store.files)]
        if not wrong:
            return damage
        time.sleep(_PAUSE_SECONDS)
    return damage + [Damage(*item) for item in wrong]


def _main_file(store: StoreReader, path: Path) -> Iterable[tuple[str, str]]:
    try:
        note = document.from_bytes(store.files.read(CHECKSUM_FILE), CHECKSUM_FILE)
    except FileNotFoundError:
        return  # since a crash there was no checkpoint
    except Damaged as error:
        yield CHECKSUM_FILE, str(error)
        return
    content = _read_open_file(path)
    if (len(content), google_crc32c.value(content)) != (note["bytes"], note["crc32c"]):
        yield FILE, f"does not match {CHECKSUM_FILE}"


def _read_open_file(path: Path) -> bytes:
    """Bytes of a file that this process may have open in SQLite. The descriptor stays open.

    Closing any descriptor of a file releases the locks that SQLite holds on it in this process (POSIX).
    """
    descriptor = os.open(path, os.O_RDONLY)
    _kept_open.append(descriptor)
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _index(store: StoreReader) -> list[Damage]:
    path = store.files.index
    if path.exists() and Index.load(path) is None:
        return [Damage(path.name, "does not match its checksum; it is made anew from the segments")]
    return []


def _segment(store: StoreReader, entry: SegmentEntry) -> list[Damage]:
    folder = f"{SEGMENTS}/{entry.name}"
    damage = []

    def attempt(what: str, read: Callable[[], object]) -> None:
        try:
            read()
        except (Damaged, FileNotFoundError, ValueError, LookupError, TypeError) as error:
            damage.append(Damage(f"{folder}/{what}".rstrip("/"), str(error)))

    segment = Segment(store.files, entry, ChunkCache(0))
    attempt("keys", segment.keys)
    attempt("offsets", segment.offsets)
    attempt("values", lambda: _numbers(segment))
    for name in METADATA:
        attempt(name, partial(store.files.read, f"{folder}/{name}"))
    if not damage:
        attempt("", lambda: _metadata(store, entry))
    return damage


def _numbers(segment: Segment) -> None:
    values = segment.values()
    for start, stop in np.lib.stride_tricks.sliding_window_view(segment.offsets(), 2).tolist():
        check(segment.entry.columns, values[start:stop])


def _metadata(store: StoreReader, entry: SegmentEntry) -> None:
    folder = f"{SEGMENTS}/{entry.name}"
    contents = {name: store.files.read(f"{folder}/{name}") for name in METADATA}
    if metadata_crc32(contents) != entry.metadata_crc32:
        raise Damaged("its zarr.json files do not match the checksum in its commit")
    attributes = read_attributes(contents["zarr.json"], folder)
    stated = (attributes["teacher"], tuple(attributes["columns"]), attributes["records"], attributes["states"])
    size = sum(file.size for file in store.files.walk(folder))
    if (*stated, size) != (entry.teacher, entry.columns, entry.records, entry.states, entry.bytes):
        raise Damaged("it is not what its commit says of it, or has more or fewer files")
