"""The embedded store: one writer, any number of readers."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tvkd_server.store.lock import Lock
from tvkd_server.store.log import Log, index_rows
from tvkd_server.store.pending import PendingRow, batches
from tvkd_server.store.recovery import last_number, open_log, rebuild_mark
from tvkd_server.store.segment import sync, write_segment
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.scored import Float32, Scored
from tvkd_shared.store.block import BASE, Damaged, blocks, checksum, from_log, to_bytes
from tvkd_shared.store.log import MalformedLog, disk
from tvkd_shared.store.reader import Place, StoreReader, check_temperatures
from tvkd_shared.wire import TeacherInfo

_logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
"""A segment takes little more than this much from the log, which bounds the memory that sealing needs."""


class Store(StoreReader):
    """A store that this process alone writes; made when it is missing. Thread safe.

    What `put` returned from is on disk. It rests in the log until more than `seal_bytes` wait there; then a background
    thread seals it into a segment, while reads and puts go on.

    Raises StoreInUse when another process writes the store, StoreUnavailable when it has another format version, or
    when the disk or zarr fails. What was committed before stays. A block that is found damaged is logged as a warning,
    and forgotten: it can be stored again.
    """

    def __init__(self, path: str | Path, *, seal_bytes: int = 8 << 20) -> None:
        store = Path(path)
        self._writing = threading.Lock()
        self._sealing = threading.Lock()
        self._seal_bytes = self._seal_at = seal_bytes
        self._wake = threading.Event()
        self._closed = False
        with disk(store, "opened"):
            for folder in (store / "segments", store / "tmp"):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(store)
            try:
                for folder in (store, store.absolute().parent):
                    sync(folder)
                self._log = open_log(store)
                self._last_number = last_number(store, self._log)
                self._pending_bytes = self._log.pending_bytes()
                super().__init__(store)
            except BaseException:
                self._lock.release()
                raise
        self._sealer = threading.Thread(target=self._seal_in_background, name="tvkd-sealer", daemon=True)
        self._sealer.start()

    def put(self, records: Sequence[tuple[bytes, Scored]]) -> None:
        """Keeps the blocks that are not here yet; what is here stays as it is. Returns when they are on disk.

        Raises ValueError when a key has not 16 bytes or a temperature is not a positive finite number, StoreUnavailable
        when the disk fails: then none of them is kept.
        """
        check_temperatures({temperature for _, record in records for temperature in record.values})
        if wrong := [key for key, _ in records if len(key) != KEY_BYTES]:
            raise ValueError(f"key {wrong[0].hex()} has {len(wrong[0])} bytes, not {KEY_BYTES}")
        rows = [
            (key, temperature, checksum(key, temperature, payload), payload)
            for key, record in records
            for temperature, block in blocks(record)
            for payload in [to_bytes(block)]
        ]
        with self._log_for("written") as log:
            self._pending_bytes = log.add(rows)
        if self._pending_bytes > self._seal_at:
            self._wake.set()

    def add_teacher(self, info: TeacherInfo) -> None:
        """Keeps a teacher's provenance under its id, in place of what was kept before."""
        with self._log_for("written") as log:
            log.add_teacher(info.id, info.model_dump_json())

    def seal(self) -> None:
        """Seals every block that is pending now. Raises StoreUnavailable when disk or zarr fails: they stay pending."""
        with self._sealing, disk(self.path, "sealed"):
            for batch in batches(self._connections, SEGMENT_BYTES):
                self._seal(batch)
        with self._log_for("sealed") as log:
            log.shrink()

    def close(self) -> None:
        """Seals what is pending, and lets the store go. When that fails the log keeps it, and a warning is logged."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        self._sealer.join()
        try:
            self.seal()
        except StoreUnavailable as error:
            _logger.warning("%s; what is pending stays in the log", error)
        super().close()
        self._log.close()
        self._lock.release()

    def _seal_in_background(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            try:
                self.seal()
                self._seal_at = self._seal_bytes
            except Exception as error:
                # Whatever it is, the blocks are safe in the log, and without this thread it would only grow.
                _logger.warning("%s; what is pending stays in the log", error, exc_info=not isinstance(error, OSError))
                # Not again at each put: only when as much again is waiting.
                self._seal_at = self._pending_bytes + self._seal_bytes

    def _seal(self, batch: list[PendingRow]) -> None:
        rows: list[PendingRow] = []
        sound: list[Float32] = []
        for row in batch:
            try:
                sound.append(from_log(row.key, row.temperature, row.crc, row.payload))
                rows.append(row)
            except Damaged as damage:
                self._damaged(Place(row.key, row.temperature, row.id, row.crc, row.payload, None, 0, 0), damage)
        if not rows:
            return
        # A number is not used twice, also when its segment could not be written.
        self._last_number += 1
        number, temperature = self._last_number, batch[0].temperature
        keys = [row.key for row in rows]
        size = write_segment(self.path, number, temperature, keys, sound)
        index = index_rows(number, temperature, keys, [len(block) for block in sound])
        with self._log_for("sealed") as log:
            log.index(number, size, index, [row.id for row in rows])
            self._pending_bytes = log.pending_bytes()

    def _damaged(self, place: Place | None, damage: Exception) -> None:
        super()._damaged(place, damage)
        try:
            if place is None:
                if not rebuild_mark(self.path).exists():
                    _logger.warning("%s", damage)
                rebuild_mark(self.path).touch()
            else:
                _logger.warning("%s is forgotten, and can be stored again: %s", _name(place), damage)
                with self._log_for("mended") as log:
                    log.drop(place)
        except OSError as error:
            _logger.warning("%s", error)

    @contextmanager
    def _log_for(self, task: str) -> Iterator[Log]:
        try:
            with self._writing, disk(self.path, task):
                yield self._log
        except MalformedLog as damage:
            self._damaged(None, damage)
            raise


def _name(place: Place) -> str:
    """A damaged block, in words; a flipped bit in the log can change the type of its key."""
    key = place.key.hex() if isinstance(place.key, bytes) else repr(place.key)
    where = "the log" if place.segment is None else f"segment {place.segment}"
    return f"key {key}, temperature {'1.0' if place.temperature == BASE else place.temperature} in {where}"
