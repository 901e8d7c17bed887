"""A store that takes records and whose segments are added to, merged and removed, by any number of processes."""

import itertools
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tvkd_shared.errors import InvalidRequest, NoStore, StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32, Record
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged, rounded
from tvkd_shared.store.catalog import COMMITS, Commit, numbered
from tvkd_shared.store.files import Files, files_at
from tvkd_shared.store.folder import Folder, network_file_system
from tvkd_shared.store.format import STORE_FILE, Format, read_format
from tvkd_shared.store.reader import TEACHERS, Piece, StoreReader, record_of
from tvkd_shared.store.segment import SEGMENTS, NewSegment, Segment, SegmentEntry, format_of_segments, new_segment

_logger = logging.getLogger(__name__)

SEAL_BYTES = 8 << 20
CHECKPOINT_EVERY = 256
"""Commits that are read one by one when a store is opened, at most."""
_FRESH_SECONDS = 300.0
"""How old a list of commits may be when the next is created. `gc` keeps commits that this writer may lack for longer."""

Blocks = dict[tuple[str, tuple[str, ...]], dict[bytes, Float32]]
"""Blocks by teacher and columns, then by key."""


def open_store(
    place: str | Path, *, seal_bytes: int = SEAL_BYTES, mantissa_bits: int | None = None, create: bool = True
) -> "Store":
    """The store in a folder or at a URL, which is made when it is missing, unless `create` is false.

    Raises NoStore when it is missing and is not to be made, InvalidRequest when it has another precision than
    `mantissa_bits`, StoreUnavailable when it has another version, its disk or service fails, the folder is on a network
    file system, or the service has no conditional writes.
    """
    files = files_at(place)
    if isinstance(files, Folder) and (kind := network_file_system(files.root)):
        raise StoreUnavailable(
            f"the store {place} cannot be written on a network file system ({kind}), where SQLite's locks are not safe: "
            "use a local disk, or object storage (s3://…)"
        )
    if files.remote:
        _check_conditional_writes(files)
    if create:
        _make(files, mantissa_bits)
    return Store(files, seal_bytes)


class Store(StoreReader):
    """What `put` returned from is durable. Thread safe.

    In a folder a put goes to SQLite, and a background thread seals more than `seal_bytes` of recent blocks into
    segments while reads and puts go on. In object storage a put is published: segments and one commit.
    """

    _writable = True

    def __init__(self, files: Files, seal_bytes: int = SEAL_BYTES) -> None:
        super().__init__(files)
        self._writer = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)
        self._listed_at = time.time()
        self._writing = threading.Lock()
        self._committing = threading.Lock()
        self._sealing = threading.Lock()
        self._seal_bytes = self._seal_at = seal_bytes
        self._waiting_bytes = self._from_recent(lambda recent: recent.size()) or 0
        self._wake = threading.Event()
        self._sealer: threading.Thread | None = None
        self._closed = False

    def put(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> list[Record]:
        """Keep the columns of a teacher's records that are not in the store yet, and return when they are durable.

        Returns the records as they are stored, which is what every reader gets: of a column that is put twice the first
        counts. Raises ValueError when a key does not have 16 bytes, or a completion has another length than its columns
        in the store; StoreUnavailable when disk or service fails: which of the records are kept is then not known.
        """
        if wrong := [key for key, _ in records if len(key) != KEY_BYTES]:
            raise ValueError(f"key {wrong[0].hex()} has {len(wrong[0])} bytes, not {KEY_BYTES}")
        if self._closed:
            raise StoreUnavailable(f"the store {self.place} is closed")
        bits = self.format.mantissa_bits
        given = [(key, record.columns, rounded(record.numbers, bits)) for key, record in records]
        stored = self._add(teacher, given, publish=self.remote)
        if self._waiting_bytes > self._seal_at:
            self._wake_sealer()
        return [stored.get((key, columns)) or Record(columns, block) for key, columns, block in given]

    def add_blocks(self, teacher: str, columns: tuple[str, ...], blocks: Mapping[bytes, Float32]) -> None:
        """Publish blocks as a segment: of each, the columns that are not in the store yet."""
        self._add(teacher, [(key, columns, block) for key, block in blocks.items()], publish=True)

    def add_teacher(self, teacher_id: str, provenance: Mapping[str, Any]) -> None:
        """Keep a teacher's provenance under its id, in place of what was kept before."""
        self.files.write({f"{TEACHERS}/{teacher_id}.json": document.to_bytes(dict(provenance) | {"id": teacher_id})})

    def seal(self) -> None:
        """Publish every recent block, of other processes too. Raises StoreUnavailable when that fails: they stay recent."""
        if self._recent is None or not self._recent.path.exists():
            return
        with self._sealing:
            rows = self.recent_rows()
            sound = [row for row in rows if row.numbers is not None]
            blocks: Blocks = {}
            for row in sound:
                if row.numbers is not None and not self._is_published(row.key, row.columns):
                    blocks.setdefault((row.teacher, row.columns), {})[row.key] = row.numbers
            if blocks:
                self.publish(self._segments(blocks))
            if rows:
                self._recent.delete(rows)
            self._waiting_bytes = max(
                0, self._waiting_bytes - sum(row.numbers.nbytes for row in sound if row.numbers is not None)
            )
            self._seal_at = self._seal_bytes
            self.save_index(grown=1.25)

    def publish(self, segments: Sequence[NewSegment], removed: Iterable[str] = ()) -> bool:
        """Write segments, and commit to them and to the removal of others in one step.

        Returns False, and publishes nothing, when one of those to be removed is not live any more. Raises
        StoreUnavailable when disk or service fails; whether it was published is then not known.
        """
        for segment in segments:
            self._write(segment)
        leaving = dict.fromkeys(removed, time.time())
        with self._committing:
            if leaving or not self.remote or time.time() - self._listed_at > _FRESH_SECONDS:
                self.refresh()
                self._listed_at = time.time()
            while True:
                if not set(leaving) <= set(self.catalog.segments):
                    return False
                number = self.catalog.number + 1
                commit = Commit(writer=self._writer, add=self._entries(segments, leaving, number), remove=leaving)
                created = self.files.create(numbered(COMMITS, number), commit.to_bytes())
                with self._refreshing:
                    if self.catalog.number == number - 1:  # otherwise another thread has read it meanwhile
                        if created:
                            self.catalog.apply({number: commit})
                        else:
                            self.catalog.read_next()
                        self._update_view()
                if created:
                    break
        if number % CHECKPOINT_EVERY == 0:
            self.write_checkpoint()
        return True

    def refresh(self) -> None:
        began = time.time()
        super().refresh()
        self._listed_at = began

    def write_checkpoint(self) -> None:
        """Let openings start from here."""
        with self._refreshing:
            self.catalog.write_checkpoint()

    def new_name(self) -> str:
        """A segment's name that nobody has used."""
        return f"{self._writer}-{next(self._numbers):06d}"

    def close(self) -> None:
        """Seal the recent blocks and close the store. When that fails they stay in SQLite, and a warning is logged."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        if self._sealer:
            self._sealer.join()
        try:
            self.seal()
            self.save_index()
        except (StoreUnavailable, Damaged) as error:
            _logger.warning("%s; recent blocks stay in SQLite", error)
        if self._recent:
            self._recent.close(shrink=True)
        super().close()

    def _add(
        self, teacher: str, given: Sequence[tuple[bytes, tuple[str, ...], Float32]], *, publish: bool
    ) -> dict[tuple[bytes, tuple[str, ...]], Record]:
        """Store what is missing. Returns the records of keys that had some of their columns in the store before."""
        try:
            with self._exclusively():
                return self._add_missing(teacher, given, publish=publish)
        except Damaged as damage:
            assert self._recent is not None  # noqa: S101 - nothing else raises it
            target = self._recent.set_aside()
            _logger.warning("%s: %s; it is kept as %s, and what it held is missing", self.place, damage, target.name)
        with self._exclusively():
            return self._add_missing(teacher, given, publish=publish)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """In a folder, no other process or thread stores blocks meanwhile. In object storage the commits decide."""
        if self._recent is None:
            yield
            return
        with self._writing, self._recent.transaction():
            yield

    def _add_missing(
        self, teacher: str, given: Sequence[tuple[bytes, tuple[str, ...], Float32]], *, publish: bool
    ) -> dict[tuple[bytes, tuple[str, ...]], Record]:
        columns = tuple(dict.fromkeys(name for _, names, _ in given for name in names))
        here = self.pieces({key for key, *_ in given}, columns, refresh=not self.remote, writing=True)
        known = {key: {name for piece in pieces for name in piece.columns} for key, pieces in here.items()}
        blocks: Blocks = {}
        for key, names, block in given:
            self._check_length(key, block, here)
            rest = tuple(name for name in names if name not in known.get(key, ()))
            if rest:
                part = block if rest == names else block[:, [names.index(name) for name in rest]]
                blocks.setdefault((teacher, rest), {})[key] = part
                known.setdefault(key, set()).update(rest)
        again = set(here) | {key for key, count in Counter(key for key, *_ in given).items() if count > 1}
        if blocks and publish:
            self.publish(self._segments(blocks))
            self.save_index(grown=1.25)
            again = {key for key, *_ in given}  # another writer's commit may have come first
        elif blocks and self._recent:
            rows = [(key, names, block) for (_, names), of_key in blocks.items() for key, block in of_key.items()]
            self._recent.insert(teacher, rows)
            self._waiting_bytes += sum(block.nbytes for _, _, block in rows)
        stored: dict[tuple[bytes, tuple[str, ...]], Record] = {}
        if again:
            pieces = self.pieces(again, columns, refresh=False, writing=True)
            for key, names, _ in given:
                if key in again and (record := record_of(pieces.get(key, []), names)):
                    stored[key, names] = record
        return stored

    def _is_published(self, key: bytes, columns: tuple[str, ...]) -> bool:
        """Whether a recent block is in segments too, which a crash between publishing and deleting leaves behind."""
        pieces = self.published([key], columns).get(key, [])
        return {name for piece in pieces for name in piece.columns} == set(columns)

    def _check_length(self, key: bytes, block: Float32, pieces: Mapping[bytes, Sequence[Piece]]) -> None:
        for piece in pieces.get(key, ()):
            if len(piece.numbers) != len(block):
                raise ValueError(
                    f"key {key.hex()} has {len(piece.numbers)} states in the store, not {len(block)}: "
                    "a key stands for one completion"
                )

    def _segments(self, blocks: Blocks) -> list[NewSegment]:
        return [
            new_segment(self.new_name(), teacher, columns, of_key, mantissa_bits=self.format.mantissa_bits)
            for (teacher, columns), of_key in blocks.items()
        ]

    def _write(self, segment: NewSegment) -> None:
        folder = f"{SEGMENTS}/{segment.entry.name}"
        contents = {f"{folder}/{name}": content for name, content in segment.contents.items()}
        try:
            self.files.write(contents)
        except StoreUnavailable:
            with suppress(StoreUnavailable):  # a full disk needs its space back
                self.files.remove(list(contents))
            raise
        Segment(self.files, segment.entry, self._cache).prime(segment.arrays)

    def _entries(self, segments: Sequence[NewSegment], leaving: Mapping[str, float], number: int) -> list[SegmentEntry]:
        """What commit `number` says of segments. Merged segments count from where the first of their parts did."""
        order = min((self.catalog.segments[name].order for name in leaving), default=number)
        return [
            segment.entry.model_copy(update={"order": order, **self._new(segment, leaving)}) for segment in segments
        ]

    def _new(self, segment: NewSegment, leaving: Mapping[str, float]) -> dict[str, int]:
        """The completions that a segment brings into the store: all of them, where it takes the place of others."""
        if not segment.entry.counts_sequences:
            return {}
        new = np.ones(segment.entry.records, bool)
        if not leaving:
            live = self._view.segments
            for name, hits in self._view.index.find(segment.keys).items():
                if name in live and live[name].counts_sequences:
                    new[[which for which, _ in hits]] = False
        return {"sequences": int(new.sum()), "tokens": int(segment.tokens[new].sum())}

    def _wake_sealer(self) -> None:
        if self._sealer is None or not self._sealer.is_alive():
            with self._writing:
                if self._sealer is None or not self._sealer.is_alive():
                    self._sealer = threading.Thread(target=self._seal_in_background, name="tvkd-sealer", daemon=True)
                    self._sealer.start()
        self._wake.set()

    def _seal_in_background(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            try:
                self.seal()
            except Exception as error:
                # The blocks are safe in SQLite, and without this thread its file would only grow.
                _logger.warning("%s; recent blocks stay in SQLite", error, exc_info=not isinstance(error, OSError))
                # Not again at each put: only when as much again is waiting.
                self._seal_at = self._waiting_bytes + self._seal_bytes

    def _damaged(self, what: str, damage: Exception) -> bool:
        if new := super()._damaged(what, damage):
            _logger.warning("%s: %s counts as missing, and can be stored again: %s", self.place, what, damage)
        return new


def _make(files: Files, mantissa_bits: int | None) -> None:
    """Make a store where there is none, or write a damaged `store.json` anew. Raises as `open_store` does."""
    wanted = Format() if mantissa_bits is None else Format(mantissa_bits)
    try:
        present = read_format(files)
    except NoStore:
        if not files.create(STORE_FILE, wanted.to_bytes()):
            _make(files, mantissa_bits)
        return
    except Damaged as damage:
        present = format_of_segments(files) or wanted
        _logger.warning("%s; it is written anew", damage)
        files.write({STORE_FILE: present.to_bytes()})
    if mantissa_bits is not None and present != wanted:
        raise InvalidRequest(
            f"the store {files} keeps {present.mantissa_bits} mantissa bits, not {mantissa_bits}; "
            "leave the flag out, or use another store"
        )


def _check_conditional_writes(files: Files) -> None:
    """With a service that ignores the condition two writers could publish one commit, and one of them would be lost."""
    probe = f"probe/{uuid.uuid4().hex}"
    if not files.create(probe, b"first") or files.create(probe, b"second"):
        raise StoreUnavailable(
            f"{files} ignores conditional writes (If-None-Match), which commits need; use a service that has them"
        )
    files.remove([probe])
