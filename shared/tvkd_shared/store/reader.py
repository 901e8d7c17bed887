"""Reading a store: beside its writers, or with no server at all."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from tvkd_shared.store.recent import FILE, Recent, Row
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


class Piece(NamedTuple):
    """Those columns of a key that count in one block. `segment` is "" for a recent block, which is in no segment yet."""

    segment: str
    columns: tuple[str, ...]
    numbers: Float32


class View(NamedTuple):
    """What is live at one moment: the segments, and the index of their keys."""

    segments: Any
    index: Index


class FilesGone(Exception):
    """A segment's files do not exist: it was compacted and collected since it was listed, or its files are lost."""

    def __init__(self, segment: str) -> None:
        super().__init__(segment)
        self.segment = segment


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
        self._open = lru_cache(OPEN_SEGMENTS)(self._open_segment)
        self._lost: set[str] = set()
        """Live segments whose files do not exist."""
        self._recent = self._open_recent()
        self.catalog = Catalog(self.files)
        self.index = Index.load(self.files.index) or Index()
        self._indexed = len(self.index)
        self._view = View({}, Index())
        self._update_view()
        if self.remote:  # a folder's index is kept by its writers
            self.save_index(grown=1.25)

    def get(self, keys: Sequence[bytes], columns: Sequence[str] | None = None) -> list[Record | None]:
        """The record of each key, with exactly the columns asked for (by default `column_names()`) in that order.

        None where a column is missing. Raises StoreUnavailable when disk or service fails.
        """
        names = tuple(column_names() if columns is None else columns)
        pieces = self.pieces(keys, names)
        return [record_of(pieces.get(key, []), names) for key in keys]

    def has(self, keys: Sequence[bytes], columns: Sequence[str] | None = None) -> list[bool]:
        """Whether each key has all the columns (by default `column_names()`). Numbers are not read, nor checked."""
        names = tuple(column_names() if columns is None else columns)
        missing = {key: set(names) for key in keys}
        self._retried(lambda: self._strike_out(missing))
        if any(missing.values()):
            self.refresh()
            self._retried(lambda: self._strike_out(missing))
        return [not missing[key] for key in keys]

    def pieces(
        self, keys: Iterable[bytes], columns: Sequence[str], *, refresh: bool = True, writing: bool = False
    ) -> dict[bytes, list[Piece]]:
        """The blocks that the columns of each key are in: of several copies of a column, the first that is sound.

        A recent block is in SQLite until the commit of its segment is published, so a look into both, and one more
        after a refresh, finds every durable block. `writing`: as the caller's transaction sees the recent blocks.
        """
        found: dict[bytes, list[Piece]] = {}
        missing = {key: tuple(columns) for key in keys}
        self._retried(lambda: self._look(missing, found, writing=writing))
        if missing and refresh:
            self.refresh()
            self._retried(lambda: self._look(missing, found, writing=writing))
        return found

    def published(self, keys: Iterable[bytes], columns: Sequence[str]) -> dict[bytes, list[Piece]]:
        """As `pieces`, but from segments only, as they are known now."""
        found: dict[bytes, list[Piece]] = {}
        missing = {key: tuple(columns) for key in keys}
        self._retried(lambda: self._look_into_segments(missing, found))
        return found

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
        return sorted(self.teachers().keys() | {entry.teacher for entry in self._view.segments.values()})

    def certificates(self) -> list[Certificate]:
        """What `tvkd store verify --rescore` found, the newest last."""
        return certificates(self.files, self._damaged)

    def counts(self) -> StoreCounts:
        self.refresh()
        view = self._view
        local = [] if self.remote else [self.files.size(name) for name in ("index", FILE, f"{FILE}-wal")]
        lengths = self._recent_lengths()
        # A segment whose keys are damaged has none that can be found.
        indexed = [entry for entry in view.segments.values() if entry.name in view.index.names]
        return StoreCounts(
            sequences=len(lengths) + sum(entry.sequences for entry in indexed),
            tokens=sum(lengths) + sum(entry.tokens for entry in indexed),
            bytes=sum(local) + sum(entry.bytes for entry in view.segments.values()),
            corrupt=self.corrupt,
        )

    def recent_rows(self) -> list[Row]:
        """Blocks that are durable and not yet in a segment. One that fails its check has no numbers."""
        return self._from_recent(lambda recent: recent.rows()) or []

    def segment(self, name: str) -> Segment:
        """A live segment. Raises KeyError when there is no such segment."""
        return self._open(self._view.segments[name])

    def close(self) -> None:
        """Close the store's files."""
        self._open.cache_clear()
        if self._recent:
            self._recent.close()

    def save_index(self, grown: float = 1.0) -> None:
        """Keep the index for the next opening, when it has grown by more than a factor.

        Where it cannot be written, the next opening reads the segments' keys instead.
        """
        with self._refreshing, suppress(OSError):
            if len(self.index) > grown * self._indexed:
                self.index.save(self.files.index)
                self._indexed = len(self.index)

    def _look(self, missing: dict[bytes, tuple[str, ...]], found: dict[bytes, list[Piece]], *, writing: bool) -> None:
        """One look into segments and recent blocks. What is found moves from `missing` to `found`."""
        self._look_into_segments(missing, found)
        if missing:
            for row in self._from_recent(lambda recent: recent.find(list(missing), writing=writing)) or []:
                if row.key in missing and row.numbers is not None:
                    _take(missing, found, row.key, "", row.columns, row.numbers)

    def _look_into_segments(self, missing: dict[bytes, tuple[str, ...]], found: dict[bytes, list[Piece]]) -> None:
        keys = list(missing)
        view = self._view
        hits = view.index.find(keys)
        entries = sorted((view.segments[name] for name in hits if name in view.segments), key=lambda entry: entry.rank)
        if self.remote:
            self._prefetch([(self._open(entry), hits[entry.name]) for entry in entries])
        for entry in entries:
            segment = self._open(entry)
            for which, row in hits[entry.name]:
                key = keys[which]
                if key in missing and not set(missing[key]).isdisjoint(entry.columns):
                    block = self._block(segment, row, key)
                    if block is not None:
                        _take(missing, found, key, entry.name, entry.columns, block)

    def _strike_out(self, missing: dict[bytes, set[str]]) -> None:
        """Take the columns that are there out of those that are missing."""
        keys = [key for key, columns in missing.items() if columns]
        view = self._view
        for name, hits in view.index.find(keys).items():
            if entry := view.segments.get(name):
                for which, row in hits:
                    if missing[keys[which]] and self._checked(
                        entry, f"{name}/{row}", self._open(entry).has, row, keys[which]
                    ):
                        missing[keys[which]] -= set(entry.columns)
        keys = [key for key in keys if missing[key]]
        for key, columns in self._from_recent(lambda recent: recent.columns_of(keys)) or []:
            missing[key] -= set(columns)

    def _block(self, segment: Segment, row: int, key: bytes) -> Float32 | None:
        if row >= segment.entry.records:
            return None
        return self._checked(segment.entry, f"{segment.entry.name}/{row}", segment.block, row, key)

    def _checked(self, entry: SegmentEntry, what: str, read: Callable[..., Result], *arguments: Any) -> Result | None:
        """What a read of a segment gives; None where it fails a check. Raises FilesGone."""
        try:
            return read(*arguments)
        except Damaged as damage:
            self._damaged(what, damage)
        except FileNotFoundError as damage:
            if entry.name not in self._lost:
                raise FilesGone(entry.name) from damage
            self._damaged(entry.name, damage)
        return None

    def _retried(self, look: Callable[[], None]) -> None:
        """Look again when segments were compacted and collected meanwhile.

        A later copy is never taken for an earlier one that may only have moved.
        """
        while True:
            try:
                return look()
            except FilesGone as gone:
                self.refresh()
                if gone.segment in self._view.segments:
                    self._lost.add(gone.segment)

    def _prefetch(self, hits: list[tuple[Segment, list[tuple[int, int]]]]) -> None:
        """Read the chunks of a look-up into the cache, several at once: object storage takes its time for each."""
        rows = [(segment, row) for segment, places in hits for _, row in places if row < segment.entry.records]

        def bounds(item: tuple[Segment, int]) -> tuple[Segment, int, int] | None:
            with suppress(Damaged, FileNotFoundError):
                item[0].shards["keys"].rows(item[1], item[1] + 1)
                return item[0], *item[0].bounds(item[1])
            return None

        def values(item: tuple[Segment, int, int]) -> None:
            with suppress(Damaged, FileNotFoundError):
                item[0].shards["values"].rows(*item[1:])

        firsts = {(segment.entry.name, row // 4096): (segment, row) for segment, row in rows}
        self._each(bounds, list(firsts.values()))
        self._each(values, [item for item in map(bounds, rows) if item])

    def _format(self) -> Format:
        try:
            return read_format(self.files)
        except Damaged as damage:
            self._damaged("store.json", damage)
            return format_of_segments(self.files) or Format()

    def _open_recent(self) -> Recent | None:
        """The recent blocks of a folder; None for object storage, and on a network file system where there are none."""
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
        if self._recent is None:
            return None
        try:
            return read(self._recent)
        except Damaged as damage:
            self._damaged(FILE, damage)
            return None

    def _recent_lengths(self) -> list[int]:
        """Tokens of each completion that is counted and only in recent blocks."""
        counted = column_names()[0]
        rows = [row for row in self.recent_rows() if row.numbers is not None and counted in row.columns]
        sealed = {which for places in self._view.index.find([row.key for row in rows]).values() for which, _ in places}
        return [len(row.numbers) - 1 for i, row in enumerate(rows) if i not in sealed and row.numbers is not None]

    def _update_view(self) -> None:
        """Bring the index to the catalog's segments, then look-ups to both."""
        live = self.catalog.segments
        for name in self.catalog.damaged:
            self._damaged(name, Damaged("it is damaged or lost, and what it named is missing"))
        if live is self._view.segments:
            return
        self.index.drop(self.index.names - live.keys())
        entries = [entry for name, entry in live.items() if name not in self.index.names]
        for entry, keys in zip(entries, self._each(self._keys, entries), strict=True):
            if keys is not None:
                self.index.add(entry.name, keys)
        self._view = View(live, self.index.copy())

    def _keys(self, entry: SegmentEntry) -> npt.NDArray[np.uint8] | None:
        try:
            return self._open(entry).keys()
        except (Damaged, FileNotFoundError) as damage:
            self._damaged(f"{entry.name}/keys", damage)
            return None

    def _each(self, read: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """What `read` gives for each item; several at once where each waits for a service."""
        if not self.remote or len(items) < 2:
            return list(map(read, items))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(read, items))

    def _open_segment(self, entry: SegmentEntry) -> Segment:
        return Segment(self.files, entry, self._cache)

    def _damaged(self, what: str, damage: Exception) -> bool:
        """Count bytes that failed a check, once. Returns whether they are new."""
        with self._counting:
            if what in self._reported:
                return False
            self._reported.add(what)
            self.corrupt += 1
            return True


def _take(
    missing: dict[bytes, tuple[str, ...]], found: dict[bytes, list[Piece]], key: bytes, segment: str,
    columns: tuple[str, ...], block: Float32,
) -> None:  # fmt: skip
    """Take from a block those columns that are still missing."""
    wanted = missing[key]
    if wanted == columns:
        taken, rest = wanted, ()
    else:
        taken = tuple(name for name in wanted if name in columns)
        rest = tuple(name for name in wanted if name not in columns)
        block = block[:, [columns.index(name) for name in taken]]
    if taken:
        found.setdefault(key, []).append(Piece(segment, taken, block))
        if rest:
            missing[key] = rest
        else:
            del missing[key]


def record_of(pieces: Sequence[Piece], columns: tuple[str, ...]) -> Record | None:
    """A record of all the columns, or None when one is missing or blocks differ in length."""
    if len(pieces) == 1 and pieces[0].columns == columns:
        return Record(columns, pieces[0].numbers.copy())
    named = {name: piece.numbers[:, i] for piece in pieces for i, name in enumerate(piece.columns)}
    if not named.keys() >= set(columns) or len({len(named[name]) for name in columns}) != 1:
        return None
    return Record(columns, np.stack([named[name] for name in columns], 1))
