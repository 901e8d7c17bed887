"""Recent blocks of a folder: durable in a SQLite file, and not yet in a segment.

`recent.sqlite` is in WAL mode with synchronous=FULL, so a committed transaction is on disk. SQLite is used by any number
of processes at once. Each row has a CRC-32C of its own, and `recent.json` has one of the whole file as of the last
checkpoint (SQLite's word for copying its write-ahead log, `recent.sqlite-wal`, into the main file).
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

FILE, CHECKSUM_FILE = "recent.sqlite", "recent.json"
BUSY_SECONDS = 60.0
"""How long a transaction waits for other processes."""

# AUTOINCREMENT: an id is never used again, so a late deletion of sealed rows cannot hit newer ones.
_SCHEMA = """CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, columns TEXT NOT NULL, teacher TEXT NOT NULL,
    crc32c INTEGER NOT NULL, numbers BLOB NOT NULL, UNIQUE (key, columns))"""
_SELECT = "SELECT id, key, columns, teacher, crc32c, numbers FROM blocks"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
_CANNOT_OPEN = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
# Where SQLite locks a file that is open in WAL mode: https://www.sqlite.org/src/file/src/os.h (SHARED_FIRST, SHARED_SIZE).
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


class _Connection:
    """One SQLite connection, used by one thread at a time and made anew in a forked process."""

    def __init__(self, connect: Callable[[], sqlite3.Connection | None]) -> None:
        self.lock = threading.RLock()
        self._connect = connect
        self._sqlite: sqlite3.Connection | None = None
        self._process = 0

    def get(self) -> sqlite3.Connection | None:
        if self._sqlite is not None and self._process != os.getpid():
            _abandoned.append(self._sqlite)
            self._sqlite = None
        if self._sqlite is None:
            self._sqlite, self._process = self._connect(), os.getpid()
        return self._sqlite

    def close(self) -> None:
        with self.lock:
            if self._sqlite is not None and self._process == os.getpid():
                self._sqlite.close()
            self._sqlite = None


class Recent:
    """The recent blocks of a folder. Thread safe.

    Raises StoreUnavailable when the disk fails or another process does not let go, Damaged when SQLite cannot make
    sense of its file. `report` is told of rows that fail their check; they count as missing.
    """

    def __init__(self, folder: Folder, report: Callable[[str, Exception], object], *, writable: bool) -> None:
        self.path = folder.root / FILE
        self._folder = folder
        self._report = report
        self._reader = _Connection(self._connect_to_read)
        self._writer = _Connection(self._connect_to_write)
        self._writable = writable
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._copied: object = None

    def find(self, keys: Sequence[bytes], *, writing: bool = False) -> list[Row]:
        """The sound rows of some keys. With `writing`, as the transaction that is open sees them."""
        with self._use(self._writer if writing else self._reader, "read") as sqlite:
            if sqlite is None:
                return []
            with _snapshot(sqlite):
                rows = [row for key in keys for row in sqlite.execute(_SELECT + " WHERE key = ? ORDER BY id", [key])]
        return [row for row in map(self._checked, rows) if row.numbers is not None]

    def columns_of(self, keys: Sequence[bytes]) -> list[tuple[bytes, tuple[str, ...]]]:
        """Key and columns of the rows of some keys, sound or not."""
        with self._use(self._reader, "read") as sqlite:
            if sqlite is None:
                return []
            query = "SELECT key, columns FROM blocks WHERE key = ?"
            with _snapshot(sqlite):
                return [(key, tuple(c.split(","))) for k in keys for key, c in sqlite.execute(query, [k])]

    def rows(self) -> list[Row]:
        """Every row, in the order of writing."""
        with self._use(self._reader, "read") as sqlite:
            rows = sqlite.execute(_SELECT + " ORDER BY id").fetchall() if sqlite else []
        return [self._checked(row) for row in rows]

    def size(self) -> int:
        """Bytes of the numbers in all rows."""
        with self._use(self._reader, "read") as sqlite:
            query = "SELECT coalesce(sum(length(numbers)), 0) FROM blocks"
            return int(sqlite.execute(query).fetchone()[0]) if sqlite else 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the only write transaction of all processes. When the block ends without an error, it is durable."""
        with self._use(self._writer, "written") as sqlite:
            assert sqlite is not None  # noqa: S101 - a writer's connection makes the file
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield
                sqlite.execute("COMMIT")
            finally:
                if sqlite.in_transaction:
                    sqlite.execute("ROLLBACK")

    def insert(self, teacher: str, blocks: Iterable[tuple[bytes, tuple[str, ...], Float32]]) -> None:
        """Add blocks to the open transaction, in place of rows that failed their check."""
        sqlite = self._writer.get()
        assert sqlite is not None  # noqa: S101 - see `transaction`
        rows = []
        for key, columns, block in blocks:
            names, numbers = ",".join(columns), np.ascontiguousarray(block, "<f4").tobytes()
            rows.append((key, names, teacher, _crc32c(teacher, key, names, numbers), numbers))
        statement = "INSERT OR REPLACE INTO blocks (key, columns, teacher, crc32c, numbers) VALUES (?, ?, ?, ?, ?)"
        sqlite.executemany(statement, rows)

    def delete(self, rows: Iterable[Row]) -> None:
        """Remove rows that are in segments, and let the file of the write-ahead log begin anew."""
        with self.transaction():
            sqlite = self._writer.get()
            assert sqlite is not None  # noqa: S101 - see `transaction`
            sqlite.executemany("DELETE FROM blocks WHERE id = ?", [(row.id,) for row in rows])
        self._checkpoint()

    def close(self, *, shrink: bool = False) -> None:
        """Close the connections; with `shrink`, make the main file small first."""
        if shrink and self._writable and self.path.exists():
            with contextlib.suppress(StoreUnavailable, Damaged), self._use(self._writer, "written") as sqlite:
                if sqlite and not sqlite.execute("SELECT count(*) FROM blocks").fetchone()[0]:
                    sqlite.execute("VACUUM")
                self._checkpoint()
        self._writer.close()
        self._reader.close()
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

    def _checkpoint(self) -> None:
        """Copy the write-ahead log into the main file, and note the main file's checksum.

        The note is removed first and written while nobody else can write: a crash in between leaves no wrong note.
        """
        with self._use(self._writer, "written") as sqlite:
            assert sqlite is not None  # noqa: S101 - a writer's connection makes the file
            self._folder.remove([CHECKSUM_FILE])
            sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                wal = Path(f"{self.path}-wal")
                if not wal.exists() or not wal.stat().st_size:
                    content = sqlite.serialize()
                    note = {"bytes": len(content), "crc32c": google_crc32c.value(content)}
                    self._folder.write({CHECKSUM_FILE: document.to_bytes(note)})
            finally:
                sqlite.execute("ROLLBACK")

    @contextlib.contextmanager
    def _use(self, connection: _Connection, task: str) -> Iterator[sqlite3.Connection | None]:
        with connection.lock:
            try:
                if connection is self._reader and self._copy and self._copied != self._stamp():
                    connection.close()
                yield connection.get()
            except sqlite3.Error as error:
                if _code(error) in _DAMAGE:
                    raise Damaged(f"{FILE}: {error}") from error
                more = ""
                if _code(error) == sqlite3.SQLITE_BUSY:
                    more = f": another process has used it for {BUSY_SECONDS:.0f} seconds"
                elif task == "written":
                    more = "; it needs free space and a local, writable disk"
                raise StoreUnavailable(f"the store {self._folder} cannot be {task}: {FILE}: {error}{more}") from error

    def _connect_to_write(self) -> sqlite3.Connection:
        while True:
            before = self._inode()
            sqlite = _connect(self.path.absolute().as_uri())
            try:
                if sqlite.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    sqlite.execute("PRAGMA page_size = 16384")
                    sqlite.execute("PRAGMA journal_mode = WAL")
                sqlite.execute("PRAGMA synchronous = FULL")
                sqlite.execute("PRAGMA wal_autocheckpoint = 0")
                sqlite.execute("PRAGMA secure_delete = OFF")
                sqlite.execute("BEGIN IMMEDIATE")
                sqlite.execute(_SCHEMA)
                sqlite.execute("COMMIT")
            except BaseException:
                sqlite.close()
                raise
            if before in (None, self._inode()):
                return sqlite
            sqlite.close()  # another process set the file aside meanwhile

    def _connect_to_read(self) -> sqlite3.Connection | None:
        if not self.path.exists():
            return None
        try:
            return _readable(self.path, "rw" if self._writable else "ro")
        except sqlite3.OperationalError as error:
            if self._writable or _code(error) not in _CANNOT_OPEN:
                raise
        return self._open_copy()

    def _open_copy(self) -> sqlite3.Connection | None:
        """A copy in a temporary folder: SQLite cannot read a file in WAL mode where it cannot write beside it."""
        self._copied = self._stamp()
        self._copy = self._copy or tempfile.TemporaryDirectory(prefix="tvkd-")
        target = Path(self._copy.name, FILE)
        try:
            for suffix in ("-shm", "-wal", ""):
                Path(f"{target}{suffix}").unlink(missing_ok=True)
                if suffix != "-shm" and Path(f"{self.path}{suffix}").exists():
                    shutil.copyfile(f"{self.path}{suffix}", f"{target}{suffix}")
        except OSError as error:
            raise StoreUnavailable(
                f"the store {self._folder} cannot be read: {FILE} cannot be copied: {error}"
            ) from error
        return _readable(target, "rw") if target.exists() else None

    def copied_rows(self) -> int:
        """Number of rows in a copy of the file: safe on a network file system, where SQLite's locks are not."""
        with self._use(self._reader, "read"):
            sqlite = self._open_copy()
            rows = int(sqlite.execute("SELECT count(*) FROM blocks").fetchone()[0]) if sqlite else 0
            if sqlite:
                sqlite.close()
        self.close()
        return rows

    def _stamp(self) -> object:
        paths = [path for path in (self.path, Path(f"{self.path}-wal")) if path.exists()]
        return [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]

    def _inode(self) -> int | None:
        return self.path.stat().st_ino if self.path.exists() else None

    def _checked(self, row: tuple[int, bytes, str, str, int, bytes]) -> Row:
        id_, key, names, teacher, crc, numbers = row
        columns = tuple(str(names).split(","))
        try:
            if _crc32c(teacher, key, names, numbers) != crc:
                raise Damaged("does not match its checksum")
            block = np.frombuffer(numbers, "<f4").astype(np.float32, copy=False).reshape(-1, len(columns))
            return Row(id_, key, columns, teacher, check(columns, block))
        except (Damaged, ValueError, TypeError, AttributeError) as damage:
            self._report(f"{FILE}/{id_}", damage if isinstance(damage, Damaged) else Damaged(str(damage)))
            return Row(id_, key, columns, teacher, None)


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _readable(path: Path, mode: str) -> sqlite3.Connection | None:
    """A connection that reads; None while the file has no table yet."""
    sqlite = _connect(f"{path.absolute().as_uri()}?mode={mode}")
    try:
        if sqlite.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            sqlite.execute("SELECT id FROM blocks LIMIT 1").fetchall()
            return sqlite
    except BaseException:
        sqlite.close()
        raise
    sqlite.close()
    return None


@contextlib.contextmanager
def _snapshot(sqlite: sqlite3.Connection) -> Iterator[None]:
    """One read transaction for several queries; nothing where a transaction is open."""
    if sqlite.in_transaction:
        yield
        return
    sqlite.execute("BEGIN")
    try:
        yield
    finally:
        sqlite.execute("COMMIT")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _crc32c(teacher: str, key: bytes, columns: str, numbers: bytes) -> int:
    return int(google_crc32c.value(b"\0".join((teacher.encode(), key, columns.encode(), numbers))))
