"""Recent blocks of a folder: durable in a SQLite file, and not yet in a segment.

`recent.sqlite` is in WAL mode with synchronous=FULL, so a committed transaction is on disk, and any number of processes
use the file at once. Each row has a CRC-32C, and `recent.json` has one of the main file as of the last checkpoint:
SQLite's word for copying its write-ahead log, `recent.sqlite-wal`, into the main file.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import Float32
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged, check
from tvkd_shared.store.folder import Folder

FILE, WAL, CHECKSUM_FILE = "recent.sqlite", "recent.sqlite-wal", "recent.json"
BUSY_SECONDS = 60.0
"""How long a transaction waits for other processes."""

# AUTOINCREMENT: an id is never used again, so a late deletion of sealed rows cannot hit newer ones.
_SCHEMA = """CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, columns TEXT NOT NULL, teacher TEXT NOT NULL,
    crc32c INTEGER NOT NULL, numbers BLOB NOT NULL, UNIQUE (key, columns))"""
_SELECT = "SELECT id, key, columns, teacher, crc32c, numbers FROM blocks"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)
# SHARED_FIRST and SHARED_SIZE in SQLite's os.h: what every process that has the file open holds a lock on.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510

_abandoned: list[sqlite3.Connection] = []
"""Connections that were made before a fork. Closing one in the child would harm the parent's."""


class Row(NamedTuple):
    """A block under its key and columns. `numbers` is float32 [S, K], None when the row fails its check."""

    id: int
    key: bytes
    columns: tuple[str, ...]
    teacher: str
    numbers: Float32 | None


class Recent:
    """The recent blocks of a folder. Thread safe: one connection, used by one thread at a time.

    Raises StoreUnavailable when the disk fails or another process does not let go, Damaged when SQLite cannot make
    sense of its file. `report` is told of rows that fail their check; they count as missing.
    """

    def __init__(self, folder: Folder, report: Callable[[str, Exception], object], *, writable: bool) -> None:
        self.path = folder.root / FILE
        self._folder = folder
        self._report = report
        self._writable = writable
        self._lock = threading.RLock()
        self._sqlite: sqlite3.Connection | None = None
        self._process = self._inode = 0
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._copied: object = None

    def find(self, keys: Sequence[bytes]) -> list[Row]:
        """The sound rows of some keys."""
        with self._connection("read") as sqlite:
            rows = [row for key in keys for row in sqlite.execute(_SELECT + " WHERE key = ?", [key])] if sqlite else []
        return [row for row in map(self._checked, rows) if row.numbers is not None]

    def rows(self) -> list[Row]:
        """Every row, in the order of writing."""
        with self._connection("read") as sqlite:
            rows = sqlite.execute(_SELECT + " ORDER BY id").fetchall() if sqlite else []
        return [self._checked(row) for row in rows]

    def size(self) -> int:
        """Bytes of the numbers in all rows."""
        with self._connection("read") as sqlite:
            query = "SELECT coalesce(sum(length(numbers)), 0) FROM blocks"
            return int(sqlite.execute(query).fetchone()[0]) if sqlite else 0

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the structure of its file; `ok` when nothing is."""
        with self._connection("read") as sqlite:
            lines = sqlite.execute("PRAGMA integrity_check").fetchall() if sqlite else []
        return [line.decode(errors="replace") for (line,) in lines]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the one write transaction of all processes. When the block ends without an error, it is durable."""
        with self._connection("written", make=True) as sqlite:
            assert sqlite is not None  # noqa: S101 - `make` says so
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield sqlite
                sqlite.execute("COMMIT")
            finally:
                if sqlite.in_transaction:
                    sqlite.execute("ROLLBACK")
            self._check_there()

    def _check_there(self) -> None:
        """Raises StoreUnavailable when the file was deleted or replaced: SQLite writes on into what is gone."""
        try:
            if self.path.stat().st_ino == self._inode:
                return
        except FileNotFoundError:
            pass
        self.close()
        raise StoreUnavailable(
            f"the store {self._folder} cannot be written: its {FILE} was deleted or replaced while it was open, and "
            "what was just written is not kept; put the store back, or start the server on another one"
        )

    def insert(self, teacher: str, blocks: Iterable[tuple[bytes, tuple[str, ...], Float32]]) -> None:
        """Add blocks in the open transaction, in place of rows that failed their check."""
        rows = []
        for key, columns, block in blocks:
            names, numbers = ",".join(columns), np.ascontiguousarray(block, "<f4").tobytes()
            crc = _crc32c(teacher.encode(), key, names.encode(), numbers)
            rows.append((key, names, teacher, crc, numbers))
        statement = "INSERT OR REPLACE INTO blocks (key, columns, teacher, crc32c, numbers) VALUES (?, ?, ?, ?, ?)"
        with self._connection("written") as sqlite:
            assert sqlite is not None  # noqa: S101 - a transaction is open
            sqlite.executemany(statement, rows)

    def delete(self, rows: Iterable[Row]) -> None:
        """Remove rows that are in segments, and begin the write-ahead log anew."""
        with self.transaction() as sqlite:
            sqlite.executemany("DELETE FROM blocks WHERE id = ?", [(row.id,) for row in rows])
        self.checkpoint()

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the main file, and note the main file's checksum.

        The note is removed first, and written while nobody else can write: a crash in between leaves no wrong note.
        """
        with self._connection("written", make=True) as sqlite:
            assert sqlite is not None  # noqa: S101 - `make` says so
            self._folder.remove([CHECKSUM_FILE])
            sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with self.transaction():
                if not os.path.exists(self._folder.root / WAL) or not os.path.getsize(self._folder.root / WAL):  # noqa: PTH110, PTH202
                    content = sqlite.serialize()
                    note = {"bytes": len(content), "crc32c": google_crc32c.value(content)}
                    self._folder.write({CHECKSUM_FILE: document.to_bytes(note)})

    def close(self) -> None:
        with self._lock:
            if self._sqlite is not None and self._process == os.getpid():
                self._sqlite.close()
            self._sqlite = None
            if self._copy:
                self._copy.cleanup()
                self._copy = None

    def set_aside(self) -> Path:
        """Rename a damaged file, so that the next transaction makes a new one. Returns its new name.

        Raises StoreUnavailable when another process has the file open.
        """
        self.close()
        target = self.path.with_name(f".{FILE}.{uuid.uuid4().hex}")
        with self.path.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
            except OSError as error:
                raise StoreUnavailable(
                    f"{self.path} is damaged and another process has it open: stop that process, then try again"
                ) from error
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{target}{suffix}")
            self._folder.remove([CHECKSUM_FILE])
        return target

    def copied_rows(self) -> int:
        """Rows in a copy of the file: safe to count on a network file system, where SQLite's locks are not."""
        with self._connection("read", copy=True) as sqlite:
            rows = int(sqlite.execute("SELECT count(*) FROM blocks").fetchone()[0]) if sqlite else 0
        self.close()
        return rows

    @contextlib.contextmanager
    def _connection(self, task: str, *, make: bool = False, copy: bool = False) -> Iterator[sqlite3.Connection | None]:
        """The connection; None when there is no file yet and none is to be made."""
        with self._lock:
            try:
                if self._sqlite is not None and self._process != os.getpid():
                    _abandoned.append(self._sqlite)
                    self._sqlite = None
                if self._copy and self._copied != self._stamp():
                    self.close()
                if self._sqlite is None and (make or self.path.exists()):
                    self._sqlite, self._process = self._open(make, copy), os.getpid()
                yield self._sqlite
            except sqlite3.Error as error:
                code = int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
                if code in _DAMAGE:
                    raise Damaged(f"{FILE}: {error}") from error
                more = "; it needs free space and a local, writable disk" if task == "written" else ""
                if code == sqlite3.SQLITE_BUSY:
                    more = f": another process has used it for {BUSY_SECONDS:.0f} seconds"
                raise StoreUnavailable(f"the store {self._folder} cannot be {task}: {FILE}: {error}{more}") from error

    def _open(self, make: bool, copy: bool) -> sqlite3.Connection | None:
        if self._writable:
            return self._open_to_write()
        if not copy:
            try:
                return _with_table(_connect(self.path, "?mode=ro"))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
        # A copy in a temporary folder: SQLite cannot always read a file in WAL mode where it cannot write beside it.
        self._copied = self._stamp()
        self._copy = tempfile.TemporaryDirectory(prefix="tvkd-")
        try:
            for name in (WAL, FILE):
                if (self._folder.root / name).exists():
                    shutil.copyfile(self._folder.root / name, Path(self._copy.name, name))
        except OSError as error:
            raise StoreUnavailable(
                f"the store {self._folder} cannot be read: {FILE} cannot be copied: {error}"
            ) from error
        return _with_table(_connect(Path(self._copy.name, FILE)))

    def _open_to_write(self) -> sqlite3.Connection:
        while True:
            before = self.path.stat().st_ino if self.path.exists() else None
            sqlite = _connect(self.path)
            try:
                if sqlite.execute("PRAGMA journal_mode").fetchone()[0] != b"wal":
                    sqlite.execute("PRAGMA page_size = 8192")
                    # Sealed rows leave the file, so that no checkpoint copies them.
                    sqlite.execute("PRAGMA auto_vacuum = FULL")
                    sqlite.execute("PRAGMA journal_mode = WAL")
                for setting in ("synchronous = FULL", "wal_autocheckpoint = 0", "secure_delete = OFF"):
                    sqlite.execute(f"PRAGMA {setting}")
                sqlite.execute(_SCHEMA)
            except BaseException:
                sqlite.close()
                raise
            self._inode = self.path.stat().st_ino
            if before in (None, self._inode):
                return sqlite
            sqlite.close()  # another process set the file aside meanwhile

    def _stamp(self) -> object:
        paths = [self._folder.root / name for name in (FILE, WAL)]
        return [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists()]

    def _checked(self, row: tuple[int, bytes, bytes, bytes, int, bytes]) -> Row:
        id_, key, names, teacher, crc, numbers = row
        try:
            if _crc32c(teacher, key, names, numbers) != crc:
                raise Damaged("does not match its checksum")
            columns = tuple(names.decode().split(","))
            block = np.frombuffer(numbers, "<f4").astype(np.float32, copy=False).reshape(-1, len(columns))
            return Row(id_, key, columns, teacher.decode(), check(columns, block))
        except (Damaged, ValueError, TypeError, AttributeError) as damage:
            self._report(f"{FILE}/{id_}", Damaged(str(damage)))
            return Row(id_, key, (), "", None)


def _connect(path: Path, mode: str = "") -> sqlite3.Connection:
    uri = path.absolute().as_uri() + mode
    sqlite = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    sqlite.text_factory = bytes  # a damaged text is then an error of its row only
    return sqlite


def _with_table(sqlite: sqlite3.Connection) -> sqlite3.Connection | None:
    """The connection, when it can read; None while the file has no table yet."""
    try:
        if sqlite.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            sqlite.execute("SELECT id FROM blocks LIMIT 1").fetchall()
            return sqlite
    except BaseException:
        sqlite.close()
        raise
    sqlite.close()
    return None


def _crc32c(teacher: bytes, key: bytes, columns: bytes, numbers: bytes) -> int:
    return int(google_crc32c.value(b"\0".join((teacher, key, columns, numbers))))
