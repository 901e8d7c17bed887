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

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import Float32, Record, column_names
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache, SharedFailureLock
from tvkd_shared.store.catalog import Catalog
from tvkd_shared.store.certificate import Certificate, certificates
from tvkd_shared.store.files import AT_ONCE, Files, files_at
from tvkd_shared.store.folder import Folder, network_file_system
from tvkd_shared.store.format import Format, read_format
from tvkd_shared.store.index import Index
from tvkd_shared.store.recent import FILE, WAL, Recent, Row
from tvkd_shared.store.search import Columns, FilesGone, Search
from tvkd_shared.store.segment import Segment, SegmentEntry, format_of_segments

CACHE_BYTES = 128 << 20
OPEN_SEGMENTS = 1024
TEACHERS = "teachers"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """sequences and tokens held; bytes on disk; corrupt: checks that failed since this store was opened."""

    sequences: int
    tokens: int
    bytes: int
    corrupt: int


class StoreReader:
    """A store, read-only. Several processes may read at once, also beside live writers. Thread safe.

    Raises NoStore when there is no store at `place`, a folder or a URL; StoreUnavailable when it has another format
    version, or when its disk or service fails. Bytes that fail a check are never served and never raise: they count as
    missing, and in `counts().corrupt`.
    """

    _writable = False

    def __init__(self, place: str | Path | Files) -> None:
        self.files = files_at(place) if isinstance(place, str | Path) else place
        self.place = str(self.files)
        self.remote = self.files.remote
        self.corrupt = 0
        """Checks that failed since this store was opened."""
        self._reported: set[str] = set()
        self._counting = threading.Lock()
        self.format = self._format()
        self._refreshing = SharedFailureLock()
        self._begun = self._done = 0  # refreshes; those that failed are not done
        self._cache = ChunkCache(CACHE_BYTES)
        self._open = lru_cache(OPEN_SEGMENTS)(lambda entry: Segment(self.files, entry, self._cache))
        self._lost: set[str] = set()
        """Live segments whose files do not exist."""
        self.recent = self._open_recent()
        self.catalog = Catalog(self.files)
        self.index = Index.load(self.files.index) or Index()
        self._indexed = len(self.index)
        self._view: tuple[Mapping[str, SegmentEntry], Index] = ({}, Index())
        self._update_view()
        if self.remote:  # a folder's index is kept by its writers
            self.save_index(grown=1.25)

    def get(self, keys: Sequence[bytes], columns: Sequence[str] | None = None) -> list[Record | None]:
        """The record of each key, with exactly the columns asked for (by default `column_names()`) in that order.

        None where a column is missing. Raises StoreUnavailable when disk or service fails.
        """
        names = tuple(column_names() if columns is None else columns)
        search = self.search(keys, names)
        return [search.record(key, names) for key in keys]

    def lacking(self, keys: Iterable[bytes], columns: Sequence[str] | None = None) -> set[bytes]:
        """Those of the keys of which a column is not in the store.

        Only indices are read, a few microseconds for each key, so that a block which is damaged counts as there.
        """
        names = set(column_names() if columns is None else columns)
        lacking = {key: set(names) for key in keys}
        self.refresh()
        live, index = self._view
        for segment, hits in index.find(asked := list(lacking)).items():
            for which, _ in hits if segment in live else ():
                lacking[asked[which]].difference_update(live[segment].columns)
        rest = [key for key, left in lacking.items() if left]
        for row in self._from_recent(lambda recent: recent.find(rest)) or [] if rest else []:
            lacking[row.key].difference_update(row.columns)
        return {key for key, left in lacking.items() if left}

    def search(self, keys: Iterable[bytes], columns: Columns, *, recent: bool = True, refresh: bool = True) -> Search:
        """The blocks that the columns of each key are in: of several copies of a column, the first that is sound.

        A recent block is in SQLite until the commit of its segment is published, so a look into both, and one more
        after a refresh, finds every durable block.
        """
        search = Search(dict.fromkeys(keys, columns), {})
        self._look(search, recent)
        if search.missing and refresh:
            self.refresh()
            self._look(search, recent)
        return search

    def refresh(self) -> None:
        """Read the commits that this process or others have added."""
        asked = self._begun
        with self._refreshing:
            if self._done > asked:
                return  # another thread's refresh began after this one was asked for
            self._begun = begun = self._begun + 1
            self.catalog.refresh()
            self._update_view()
            self._done = begun

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Teacher id → provenance, the fields of TeacherInfo."""
        provenances = {}
        for name in self.files.names(TEACHERS):
            try:
                fields = document.from_bytes(self.files.read(f"{TEACHERS}/{name}"), f"{TEACHERS}/{name}")
                provenances[str(fields["id"])] = fields
            except (Damaged, LookupError, FileNotFoundError) as damage:
                self._damaged(f"{TEACHERS}/{name}", damage)
        return provenances

    def teacher_ids(self) -> list[str]:
        """Teachers that have numbers in segments, or provenance."""
        return sorted(self.teachers().keys() | {entry.teacher for entry in self.catalog.segments.values()})

    def certificates(self) -> list[Certificate]:
        """What `tvkd store verify --rescore` found, the newest last."""
        return certificates(self.files, self._damaged)

    def counts(self) -> StoreCounts:
        self.refresh()
        live, index = self._view
        # A segment whose keys are damaged has none that can be found.
        indexed = [entry for name, entry in live.items() if name in index.names]
        rows = [row for row in self.recent_rows() if row.numbers is not None and column_names()[0] in row.columns]
        sealed = {which for hits in index.find([row.key for row in rows]).values() for which, _ in hits}
        lengths = [len(row.numbers) - 1 for i, row in enumerate(rows) if i not in sealed and row.numbers is not None]
        local = [self.files.root / name for name in ("index", FILE, WAL)] if isinstance(self.files, Folder) else []
        return StoreCounts(
            sequences=len(lengths) + sum(entry.sequences for entry in indexed),
            tokens=sum(lengths) + sum(entry.tokens for entry in indexed),
            bytes=sum(entry.bytes for entry in live.values()) + sum(p.stat().st_size for p in local if p.exists()),
            corrupt=self.corrupt,
        )

    def recent_rows(self) -> list[Row]:
        """Blocks that are durable and not yet in a segment. One that fails its check has no numbers."""
        return self._from_recent(lambda recent: recent.rows()) or []

    def segment(self, name: str) -> Segment:
        """A live segment. Raises KeyError when there is none of that name."""
        return self._open(self._view[0][name])

    def close(self) -> None:
        """Close the store's files."""
        self._open.cache_clear()
        if self.recent:
            self.recent.close()

    def save_index(self, grown: float = 1.0) -> None:
        """Keep the index for the next opening, when it has grown by more than a factor.

        Where it cannot be written, the next opening reads the segments' keys instead.
        """
        with self._refreshing, suppress(OSError):
            if len(self.index) > grown * self._indexed:
                self.index.save(self.files.index)
                self._indexed = len(self.index)

    def _look(self, search: Search, recent: bool) -> None:
        """One look into segments, and into recent blocks for what no segment has.

        It begins again when segments were compacted and collected meanwhile: a later copy is never taken for an earlier
        one that may only have moved.
        """
        while True:
            try:
                self._look_into_segments(search)
                break
            except FilesGone as gone:
                self.refresh()
                if gone.segment in self._view[0]:
                    self._lost.add(gone.segment)
        if search.missing and recent:
            for row in self._from_recent(lambda recent: recent.find(list(search.missing))) or []:
                if row.numbers is not None:
                    search.take(row.key, "", row.columns, row.numbers)

    def _look_into_segments(self, search: Search) -> None:
        keys = list(search.missing)
        live, index = self._view
        hits = index.find(keys)
        wanted = {name for columns in search.missing.values() for name in columns}
        entries = [live[name] for name in hits if name in live and not wanted.isdisjoint(live[name].columns)]
        entries.sort(key=lambda entry: entry.rank)
        places = [(entry, row, keys[which]) for entry in entries for which, row in hits[entry.name]]
        for (entry, _, key), block in zip(places, self._each(self._block, places), strict=True):
            if block is not None:
                search.take(key, entry.name, entry.columns, block)

    def _block(self, place: tuple[SegmentEntry, int, bytes]) -> Float32 | None:
        """The block at a place; None where it has another key or fails a check. Raises FilesGone."""
        entry, row, key = place
        try:
            return self._open(entry).block(row, key)
        except Damaged as damage:
            self._damaged(f"{entry.name}/{row}", damage)
        except FileNotFoundError as damage:
            if entry.name not in self._lost:
                raise FilesGone(entry.name) from damage
            self._damaged(entry.name, damage)
        return None

    def _format(self) -> Format:
        try:
            return read_format(self.files)
        except Damaged as damage:
            self._damaged("store.json", damage)
            return format_of_segments(self.files) or Format()

    def _open_recent(self) -> Recent | None:
        """The recent blocks of a folder; None for object storage, and on a network file system that has none."""
        if not isinstance(self.files, Folder):
            return None
        recent = Recent(self.files, self._damaged, writable=self._writable)
        if kind := network_file_system(self.files.root):
            if recent.copied_rows():
                raise StoreUnavailable(
                    f"the store {self.place} is on a network file system ({kind}) and {FILE} still has blocks in it: "
                    "stop the server, or run `tvkd store compact` on its machine"
                )
            return None
        return recent

    def _from_recent(self, read: Callable[[Recent], Result]) -> Result | None:
        """What a read of the recent blocks gives; None where there are none, or their file is damaged."""
        try:
            return read(self.recent) if self.recent else None
        except Damaged as damage:
            self._damaged(FILE, damage)
            return None

    def _update_view(self) -> None:
        """Bring the index to the catalog's segments, then look-ups to both."""
        live = self.catalog.segments
        for name in self.catalog.damaged:
            self._damaged(name, Damaged("it is damaged or lost, and what it named is missing"))
        if live is self._view[0]:
            return
        self.index.drop(self.index.names - live.keys())
        entries = [entry for name, entry in live.items() if name not in self.index.names]
        for entry, keys in zip(entries, self._each(self._keys, entries), strict=True):
            if keys is not None:
                self.index.add(entry.name, keys)
        self._view = live, self.index.copy()

    def _keys(self, entry: SegmentEntry) -> npt.NDArray[np.uint8] | None:
        try:
            return self._open(entry).keys()
        except (Damaged, FileNotFoundError) as damage:
            self._damaged(f"{entry.name}/keys", damage)
            return None

    def _each(self, read: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """What `read` gives for each item; several at once where each waits for a service."""
        if not self.remote or len(items) < 2:
            return map(read, items)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(read, items))

    def _damaged(self, what: str, damage: Exception) -> bool:
        """Count bytes that failed a check, once. Returns whether they are new."""
        with self._counting:
            if what in self._reported:
                return False
            self._reported.add(what)
            self.corrupt += 1
            return True
