"""Reading a store: beside its writers, or with no server at all."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tvkd_shared.record import Float32, Record
from tvkd_shared.store import document
from tvkd_shared.store.block import BASE, Damaged, record
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.catalog import Catalog
from tvkd_shared.store.certificate import Certificate, certificates
from tvkd_shared.store.entry import SegmentEntry
from tvkd_shared.store.files import AT_ONCE, files_at
from tvkd_shared.store.format import Format, read_format
from tvkd_shared.store.index import Index
from tvkd_shared.store.log import LogReader, Name, Pending
from tvkd_shared.store.segment import Segment, format_of_segments
from tvkd_shared.store.turn import Turn
from tvkd_shared.store.view import Gone, View

CACHE_BYTES = 128 << 20
OPEN_SEGMENTS = 1024
TEACHERS = "teachers"

One = TypeVar("One")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """sequences and tokens held; bytes on disk; corrupt: checks that failed since this store was opened."""

    sequences: int
    tokens: int
    bytes: int
    corrupt: int


def check_temperatures(temperatures: Iterable[float]) -> None:
    """Raises ValueError when one of them is not a positive finite number."""
    for temperature in temperatures:
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature {temperature} is not a positive finite number")


class StoreReader:
    """A store, read-only. Several processes may read at once, also beside live writers. Thread safe.

    Raises NoStore when there is no store at `place`, a folder or a URL; StoreUnavailable when it has another format
    version, or when its disk or service fails. Bytes that fail a check are never served and never raise: they count as
    missing, and in `counts().corrupt`.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.files = files_at(place)
        self.corrupt = 0
        """Checks that failed since this store was opened."""
        self._reported: set[str] = set()
        self._counting = threading.Lock()
        self.format = self._format()
        self._refreshing = Turn()
        self._begun = self._done = 0  # refreshes; those that failed are not done
        self._cache = ChunkCache(CACHE_BYTES)
        self._open = lru_cache(OPEN_SEGMENTS)(self._open_segment)
        self._log = LogReader(self.files)
        self._lost: set[str] = set()
        """Live segments of which files are not there."""
        self.catalog = Catalog(self.files)
        self.index = Index.load(self.files.index) or Index()
        self._indexed = len(self.index)
        self._view = View({}, Index(), self._open, self._damaged)
        self._update_view()
        if self.files.remote:  # a folder's index is its writer's to keep
            self.save_index(grown=1.25)

    def get(self, keys: Sequence[bytes], temperatures: Sequence[float] = (1.0,)) -> list[Record | None]:
        """The record of each key, None where it is missing.

        A record's `values` hold temperature 1.0 and those of the asked ones that are stored. Raises ValueError when a
        temperature is not a positive finite number, StoreUnavailable when disk or service fails.
        """
        check_temperatures(temperatures)
        asked = [BASE, *dict.fromkeys(temperature for temperature in temperatures if temperature != 1.0)]
        names = dict.fromkeys(Name(key, temperature) for key in keys for temperature in asked)
        found = self._blocks(list(names))
        return [_record(key, asked, found) for key in keys]

    def blocks(self, names: Sequence[Name]) -> dict[Name, Float32]:
        """The sound blocks of segments as they are known now; of several of a name, the first that was published."""
        return {name: block for name, (_, block) in self.winners(names).items()}

    def winners(self, names: Sequence[Name]) -> dict[Name, tuple[str, Float32]]:
        """As `blocks`, with the segment that each comes from."""
        while True:
            view = self._view
            try:
                return self._winners(view, names)
            except Gone as gone:
                self.refresh()
                if gone.segment in self._view.segments:
                    self._lost.add(gone.segment)

    def _winners(self, view: View, names: Sequence[Name]) -> dict[Name, tuple[str, Float32]]:
        wanted = list(dict.fromkeys(name.key for name in names))
        places = dict(zip(wanted, view.index.find(wanted), strict=True))
        found = self._each(lambda name: view.first(name, places[name.key], self._lost), names)
        return {name: one for name, one in zip(names, found, strict=True) if one is not None}

    def refresh(self) -> None:
        """Take in the commits since, of this process or of others."""
        asked = self._begun
        with self._refreshing:
            if self._done > asked:
                return  # another thread's began after this one was asked for
            self._begun = begun = self._begun + 1
            self.catalog.refresh()
            self._update_view()
            self._done = begun

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Teacher id → provenance, the fields of TeacherInfo."""
        found = {}
        for name in self.files.names(TEACHERS):
            try:
                said = document.from_bytes(self.files.read(f"{TEACHERS}/{name}"), f"{TEACHERS}/{name}")
                found[str(said["id"])] = said
            except (Damaged, LookupError, FileNotFoundError) as damage:
                self._damaged(f"{TEACHERS}/{name}", damage)
        return found

    def teacher_ids(self) -> list[str]:
        """Those of which there are values in segments, or provenance, which may be damaged."""
        return sorted(self.teachers().keys() | {entry.teacher for entry in self._view.segments.values()})

    def certificates(self) -> list[Certificate]:
        """What `tvkd store verify --rescore` found, the newest last."""
        return certificates(self.files, self._damaged)

    def counts(self) -> StoreCounts:
        self.refresh()
        view = self._view
        entries = list(view.segments.values())
        local = 0 if self.files.remote else _size(self.files.index) + sum(file.size for file in self.files.walk("log"))
        sequences, tokens = self._pending_counts()
        # A segment whose keys are damaged has none that can be found.
        found = [entry for entry in entries if entry.name in view.index.names]
        return StoreCounts(
            sequences=sequences + sum(entry.sequences for entry in found),
            tokens=tokens + sum(entry.tokens for entry in found),
            bytes=local + sum(entry.bytes for entry in entries),
            corrupt=self.corrupt,
        )

    def segment(self, name: str) -> Segment:
        """A live segment. Raises KeyError when it is none."""
        return self._open(self._view.segments[name])

    def close(self) -> None:
        """Let the store go."""
        self._open.cache_clear()

    def _format(self) -> Format:
        try:
            return read_format(self.files)
        except Damaged as damage:
            self._damaged("store.json", damage)
            return format_of_segments(self.files) or Format()

    def _blocks(self, names: list[Name]) -> dict[Name, Float32]:
        """Segments as known, then the log, then segments published meanwhile: a block is always in one of them."""
        found = self.blocks(names)
        if left := [name for name in names if name not in found]:
            pending = self.pending()
            found |= {name: pending[name].block for name in left if name in pending}
        if left := [name for name in names if name not in found]:
            self.refresh()
            found |= self.blocks(left)
        return found

    def pending(self) -> Mapping[Name, Pending]:
        """Blocks that are durable and not yet in a segment."""
        if self.files.remote:
            return {}
        with self._refreshing:
            found = self._log.pending()
            self._tell(self._log)
        return found

    def _tell(self, log: LogReader) -> None:
        """Count what is damaged in the log."""
        for name, file in log.read.items():
            if file.skipped:
                self._damaged(name, Damaged(f"{file.skipped} bytes are no record"))

    def _update_view(self) -> None:
        """Bring the index to the catalog's segments, then look-ups to both.

        A segment whose keys are damaged has none that can be found.
        """
        live = self.catalog.segments
        if live is self._view.segments:
            return
        self.index.drop(self.index.names - live.keys())
        missing = [entry for name, entry in live.items() if name not in self.index.names]
        for entry, keys in zip(missing, self._each(self._keys, missing), strict=True):
            if keys is not None:
                self.index.add(entry.name, keys)
        self._view = View(live, self.index.copy(), self._open, self._damaged)
        for name in self.catalog.damaged:
            self._damaged(name, Damaged(f"{name} is damaged"))

    def _keys(self, entry: SegmentEntry) -> npt.NDArray[np.uint8] | None:
        try:
            return self._open(entry).keys()
        except (Damaged, FileNotFoundError) as damage:
            self._damaged(f"{entry.name}/keys", damage)
            return None

    def _each(self, read: Callable[[One], Answer], names: Sequence[One]) -> Iterable[Answer]:
        """What `read` gives for each name; several at once where each waits for a service."""
        if not self.files.remote or len(names) < 2:
            return map(read, names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(read, names))

    def save_index(self, grown: float = 1.0) -> None:
        """Keep the index for the next opening, when it has grown by more than a factor.

        Where it cannot be written, the next opening reads the segments' keys instead.
        """
        with self._refreshing, suppress(OSError):
            if len(self.index) > grown * self._indexed:
                self.index.save(self.files.index)
                self._indexed = len(self.index)

    def _open_segment(self, entry: SegmentEntry) -> Segment:
        return Segment(self.files, entry, self._cache)

    def _pending_counts(self) -> tuple[int, int]:
        held = dict(self.pending())
        # A crash may have left blocks in the log that are in a segment already.
        found = self._view.index.find([name.key for name in held])
        fresh = [
            len(pending.block) - 1
            for (name, pending), places in zip(held.items(), found, strict=True)
            if name.temperature == BASE and not places
        ]
        return len(fresh), sum(fresh)

    def _damaged(self, what: str, damage: Exception) -> bool:
        """Count bytes that failed a check, once. Returns whether they are new."""
        with self._counting:
            if what in self._reported:
                return False
            self._reported.add(what)
            self.corrupt += 1
            return True


def _record(key: bytes, asked: list[float], found: dict[Name, Float32]) -> Record | None:
    base = found.get(Name(key, BASE))
    if base is None:
        return None
    further = {tau: found[Name(key, tau)] for tau in asked[1:] if Name(key, tau) in found}
    return record(base, {tau: block for tau, block in further.items() if len(block) == len(base)})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
