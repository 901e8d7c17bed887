"""A store in a folder: one process writes it, any number read it."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvkd_server.store.lock import Lock
from tvkd_server.store.log import Log
from tvkd_server.store.store import Store
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import Record
from tvkd_shared.store.folder import Folder, disk_faults
from tvkd_shared.store.log import LogReader, Name, Pending, to_bytes

_logger = logging.getLogger(__name__)


class LocalStore(Store):
    """What `put` returned from is in the log, on disk. A background thread seals the log into segments when more than
    `seal_bytes` wait there, while reads and puts go on. Thread safe.

    Raises StoreInUse when another process writes the store. What was committed before a failure stays. A block that is
    found damaged is logged as a warning and counts as missing: it can be stored again.
    """

    def __init__(self, place: str | Path, *, seal_bytes: int = 8 << 20, mantissa_bits: int | None = None) -> None:
        root = Path(place)
        self._writing = threading.Lock()
        self._sealing = threading.Lock()
        self._seal_bytes = self._seal_at = seal_bytes
        self._wake = threading.Event()
        self._closed = False
        self._held: dict[Name, Pending] = {}
        self._held_bytes = 0
        with disk_faults(root, "opened"):
            Folder(root).make(root)
            self._lock = Lock(root)
            try:
                super().__init__(place, mantissa_bits)
                folder = Folder(root)
                log = LogReader(folder)
                self._held = dict(log.pending())
                self._tell(log)
                self._held_bytes = sum(pending.block.nbytes for pending in self._held.values())
                self._log_file = Log(folder)
            except BaseException:
                self._lock.release()
                raise
        self._sealer = threading.Thread(target=self._seal_in_background, name="tvkd-sealer", daemon=True)
        self._sealer.start()

    def put(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> None:
        rows = self.rows(teacher, records)
        self.heal()
        with self._writing, disk_faults(self.place, "written"):
            if self._closed:
                raise StoreUnavailable(f"the store {self.place} is closed")
            stored = self.blocks([name for name in rows if name not in self._held])
            new = {name: row for name, row in rows.items() if name not in self._held and name not in stored}
            if new:
                self._log_file.append(b"".join(to_bytes(name, row) for name, row in new.items()))
                self._held |= new
                self._held_bytes += sum(row.block.nbytes for row in new.values())
        if self._held_bytes > self._seal_at:
            self._wake.set()

    def seal(self) -> None:
        """Seals every block that is pending now. Raises StoreUnavailable when disk or zarr fails: they stay pending."""
        with self._sealing, disk_faults(self.place, "sealed"):
            with self._writing:
                names, held = self._log_file.rotate(), dict(self._held)
            # A crash may have left blocks in the log that were published.
            stored = self.blocks(list(held))
            if new := {name: row for name, row in held.items() if name not in stored}:
                self.publish(self.new_segments(new))
            with self._writing:
                self._held = {name: row for name, row in self._held.items() if held.get(name) is not row}
                self._held_bytes = sum(row.block.nbytes for row in self._held.values())
                self._log_file.drop(names)
            if new:
                self.save_index(grown=1.25)

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
            self.save_index()
        except StoreUnavailable as error:
            _logger.warning("%s; what is pending stays in the log", error)
        finally:
            super().close()
            self._log_file.close()
            self._lock.release()

    def pending(self) -> Mapping[Name, Pending]:
        return self._held

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
                self._seal_at = self._held_bytes + self._seal_bytes
