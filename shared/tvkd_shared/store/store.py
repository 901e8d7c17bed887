"""A store that takes records, and whose segments are added to, merged and removed, by any number of processes."""

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32, Record
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged, rounded
from tvkd_shared.store.catalog import COMMITS, Commit, numbered
from tvkd_shared.store.files import Files
from tvkd_shared.store.reader import TEACHERS, StoreReader
from tvkd_shared.store.search import Columns, Search
from tvkd_shared.store.segment import SEGMENTS, NewSegment, Segment, new_segment

_logger = logging.getLogger(__name__)

SEAL_BYTES = 8 << 20
CHECKPOINT_EVERY = 256
"""Commits that are read one by one when a store is opened, at most."""
_FRESH_SECONDS = 300.0
"""How old the list of commits may be when the next is created: far younger than commits that `gc` removes."""

Given = Sequence[tuple[bytes, Columns, Float32]]
"""Blocks, each with its key and columns."""


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
        self._committing = threading.Lock()
        self._sealing = threading.Lock()
        self._seal_bytes = self._seal_at = seal_bytes
        self._waiting_bytes = self._from_recent(lambda recent: recent.size()) or 0
        self._wake = threading.Event()
        self._sealer = threading.Thread(target=self._seal_in_background, name="tvkd-sealer", daemon=True)
        self._closed = False
        if self.recent:
            self._sealer.start()

    def put(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> list[Record]:
        """Keep the columns of a teacher's records that are not in the store yet, and return when they are durable.

        Returns the records as they are stored, which is what every reader gets: of a column that is put twice the first
        counts. Raises ValueError when a key does not have 16 bytes, or a completion has another length than in the
        store; StoreUnavailable when disk or service fails: which of the records are kept is then not known.
        """
        if wrong := [key for key, _ in records if len(key) != KEY_BYTES]:
            raise ValueError(f"key {wrong[0].hex()} has {len(wrong[0])} bytes, not {KEY_BYTES}")
        bits = self.format.mantissa_bits
        given = [(key, record.columns, rounded(record.numbers, bits)) for key, record in records]
        _, search = self.add(teacher, given, publish=self.remote)
        if self._waiting_bytes > self._seal_at:
            self._wake.set()
        for key, _, block in given:
            if search.length(key) != len(block):
                raise ValueError(f"key {key.hex()} has another number of states in the store than {len(block)}")
        return [search.record(key, names) or Record(names, block) for key, names, block in given]

    def add(self, teacher: str, given: Given, *, publish: bool) -> tuple[int, Search]:
        """Store those columns of blocks that are missing, in SQLite or, with `publish`, in segments.

        Returns the number of stored blocks, and a search that finds all that were given. Raises as `put` does.
        """
        try:
            with self._exclusively():
                return self._add(teacher, given, publish)
        except Damaged as damage:
            if self.recent is None:
                raise
            target = self.recent.set_aside()
            _logger.warning("%s: %s; it is kept as %s, and what it held is missing", self.place, damage, target.name)
        with self._exclusively():
            return self._add(teacher, given, publish)

    def add_teacher(self, teacher_id: str, provenance: Mapping[str, Any]) -> None:
        """Keep a teacher's provenance under its id, in place of what was kept before."""
        self.files.write({f"{TEACHERS}/{teacher_id}.json": document.to_bytes({**provenance, "id": teacher_id})})

    def seal(self) -> None:
        """Publish every recent block, of other processes too. Raises StoreUnavailable when that fails: they stay."""
        if self.recent is None or not (rows := self.recent_rows()):
            return
        with self._sealing:
            rows = self.recent_rows()
            blocks: dict[tuple[str, Columns], dict[bytes, Float32]] = {}
            for row in rows:
                # A crash between publishing and deleting leaves a row that is in a segment too.
                if row.numbers is not None and self.search([row.key], row.columns, recent=False, refresh=False).missing:
                    blocks.setdefault((row.teacher, row.columns), {})[row.key] = row.numbers
            self.publish([self.new_segment(*group, of_key) for group, of_key in blocks.items()])
            self.recent.delete(rows)
            sealed = sum(row.numbers.nbytes for row in rows if row.numbers is not None)
            self._waiting_bytes = max(0, self._waiting_bytes - sealed)
            self._seal_at = self._seal_bytes
            self.save_index(grown=1.25)

    def publish(self, segments: Sequence[NewSegment], removed: Iterable[str] = ()) -> bool:
        """Write segments, and commit to them and to the removal of others in one step.

        Returns False, and publishes nothing, when one of those to be removed is not live any more. Raises
        StoreUnavailable when disk or service fails; whether it was published is then not known.
        """
        leaving = dict.fromkeys(removed, time.time())
        if not segments and not leaving:
            return True
        for segment in segments:
            self._write(segment)
        with self._committing:
            if leaving or not self.remote or time.time() - self._listed_at > _FRESH_SECONDS:
                self.refresh()
            while True:
                if not set(leaving) <= set(self.catalog.segments):
                    return False
                number = self.catalog.number + 1
                # Merged segments count from where the first of their parts did.
                order = min((self.catalog.segments[name].order for name in leaving), default=number)
                added = [new.entry.model_copy(update={"order": order, **self._new(new, leaving)}) for new in segments]
                commit = Commit(writer=self._writer, add=added, remove=leaving)
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

    def new_segment(self, teacher: str, columns: Columns, blocks: Mapping[bytes, Float32]) -> NewSegment:
        """A segment under a name that nobody has used."""
        name = f"{self._writer}-{next(self._numbers):06d}"
        return new_segment(name, teacher, columns, blocks, mantissa_bits=self.format.mantissa_bits)

    def refresh(self) -> None:
        began = time.time()
        super().refresh()
        self._listed_at = began

    def write_checkpoint(self) -> None:
        """Let openings start from here."""
        with self._refreshing:
            self.catalog.write_checkpoint()

    def close(self) -> None:
        """Seal the recent blocks and close the store. When that fails they stay in SQLite, and a warning is logged."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        if self.recent:
            self._sealer.join()
        try:
            self.seal()
            self.save_index()
            if self.recent and self.recent.path.exists():
                self.recent.checkpoint()
        except (StoreUnavailable, Damaged) as error:
            _logger.warning("%s; recent blocks stay in SQLite", error)
        super().close()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """In a folder, no other process or thread stores blocks meanwhile. In object storage the commits decide."""
        with self.recent.transaction() if self.recent else nullcontext():
            if self._closed:
                raise StoreUnavailable(f"the store {self.place} is closed")
            yield

    def _add(self, teacher: str, given: Given, publish: bool) -> tuple[int, Search]:
        columns = tuple(dict.fromkeys(name for _, names, _ in given for name in names))
        if not self.remote:
            self.refresh()
        search = self.search([key for key, *_ in given], columns, refresh=False)
        new: dict[Columns, dict[bytes, Float32]] = {}
        for key, names, block in given:
            if search.length(key) not in (None, len(block)):
                continue
            if rest := tuple(name for name in names if name in search.missing.get(key, ())):
                part = block if rest == names else block[:, [names.index(name) for name in rest]]
                new.setdefault(rest, {})[key] = part
                search.take(key, "", rest, part)
        stored = sum(map(len, new.values()))
        if new and publish:
            self.publish([self.new_segment(teacher, names, blocks) for names, blocks in new.items()])
            self.save_index(grown=1.25)
            # Another writer's commit may have come first.
            search = self.search([key for key, *_ in given], columns, refresh=False)
        elif new and self.recent:
            rows = [(key, names, block) for names, blocks in new.items() for key, block in blocks.items()]
            self.recent.insert(teacher, rows)
            self._waiting_bytes += sum(block.nbytes for _, _, block in rows)
        return stored, search

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

    def _new(self, segment: NewSegment, leaving: Mapping[str, float]) -> dict[str, int]:
        """The completions that a segment brings into the store: all of them, where it takes the place of others."""
        if not segment.entry.counts_sequences:
            return {}
        new = np.ones(segment.entry.records, bool)
        if not leaving:
            live, index = self._view
            for name, hits in index.find([row.tobytes() for row in segment.arrays["keys"]]).items():
                if name in live and live[name].counts_sequences:
                    new[[which for which, _ in hits]] = False
        tokens = np.diff(segment.arrays["offsets"]) - 1
        return {"sequences": int(new.sum()), "tokens": int(tokens[new].sum())}

    def _seal_in_background(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            try:
                if not self._closed:
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
