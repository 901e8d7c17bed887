"""log.sqlite: the durable log of blocks not yet sealed, the index of sealed ones, and the teachers.

The totals are kept by triggers, in the transaction that changes what they count, so that no writer can forget them.
"""

import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvkd_shared.errors import NoStore, StoreUnavailable
from tvkd_shared.store.segment import FORMAT_VERSION

APPLICATION_ID = 0x74766B64  # "tvkd"

SCHEMA = """
CREATE TABLE teachers (id TEXT PRIMARY KEY, provenance TEXT NOT NULL);
CREATE TABLE pending (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, temperature REAL NOT NULL,
    crc INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (key, temperature));
CREATE TABLE sealed (
    key BLOB NOT NULL, temperature REAL NOT NULL, segment INTEGER NOT NULL, row INTEGER NOT NULL,
    states INTEGER NOT NULL, PRIMARY KEY (key, temperature)) WITHOUT ROWID;
CREATE TABLE segments (number INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE totals (sequences INTEGER, tokens INTEGER, pending_bytes INTEGER, segment_bytes INTEGER);
INSERT INTO totals VALUES (0, 0, 0, 0);
CREATE TRIGGER pending_bytes_added AFTER INSERT ON pending BEGIN
    UPDATE totals SET pending_bytes = pending_bytes + length(NEW.payload); END;
CREATE TRIGGER pending_bytes_dropped AFTER DELETE ON pending BEGIN
    UPDATE totals SET pending_bytes = pending_bytes - length(OLD.payload); END;
CREATE TRIGGER segment_added AFTER INSERT ON segments BEGIN
    UPDATE totals SET segment_bytes = segment_bytes + NEW.bytes; END;
CREATE TRIGGER pending_added AFTER INSERT ON pending WHEN NEW.temperature = 0 BEGIN
    UPDATE totals SET sequences = sequences + 1, tokens = tokens + length(NEW.payload) / 12 - 1; END;
CREATE TRIGGER pending_dropped AFTER DELETE ON pending WHEN OLD.temperature = 0 BEGIN
    UPDATE totals SET sequences = sequences - 1, tokens = tokens - length(OLD.payload) / 12 + 1; END;
CREATE TRIGGER sealed_added AFTER INSERT ON sealed WHEN NEW.temperature = 0 BEGIN
    UPDATE totals SET sequences = sequences + 1, tokens = tokens + NEW.states - 1; END;
CREATE TRIGGER sealed_dropped AFTER DELETE ON sealed WHEN OLD.temperature = 0 BEGIN
    UPDATE totals SET sequences = sequences - 1, tokens = tokens - OLD.states + 1; END;
"""

_EVERY_TABLE = """
SELECT EXISTS (SELECT 1 FROM teachers), EXISTS (SELECT 1 FROM pending), EXISTS (SELECT 1 FROM sealed),
    EXISTS (SELECT 1 FROM segments), EXISTS (SELECT sequences FROM totals)
"""

_NOT_OUR_PAGES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


class MalformedLog(StoreUnavailable):
    """The log's pages do not make a database. The writer rebuilds the index from the segments when it opens."""


def log_path(store: Path) -> Path:
    return store / "log.sqlite"


@contextmanager
def disk(store: Path, task: str) -> Iterator[None]:
    """A failing disk, whichever way it is told, becomes StoreUnavailable; pages that are no database, MalformedLog."""
    try:
        yield
    except (StoreUnavailable, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        # An error that Python makes itself, such as a column that is no UTF-8, carries no code.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _NOT_OUR_PAGES:
            raise MalformedLog(
                f"{log_path(store)} is malformed ({error}); the server rebuilds it from the segments when it starts"
            ) from error
        raise StoreUnavailable(
            f"the store {store} cannot be {task}: {error}; it needs free space and a local, writable disk"
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"the store {store} cannot be {task}: {error}") from error


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether the database holds nothing yet."""
    return not connection.execute("SELECT 1 FROM sqlite_master").fetchone()


def check_log(store: Path, connection: sqlite3.Connection) -> None:
    """Raises StoreUnavailable when the log has another format version, MalformedLog when it is not a log of ours."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise MalformedLog(
            f"{log_path(store)} is no log of a store; the server rebuilds it from the segments when it starts"
        )
    if version != FORMAT_VERSION:
        raise StoreUnavailable(
            f"the store {store} has format version {version}; this program reads version {FORMAT_VERSION}"
        )
    connection.execute(_EVERY_TABLE).fetchone()


def connect_read_only(store: Path) -> sqlite3.Connection:
    """A read-only connection to a store's log. Raises NoStore when there is none, StoreUnavailable when it fails."""
    path = log_path(store).absolute()
    if not path.is_file():
        raise NoStore(f"there is no store at {store}: it has no {path.name}")
    with disk(store, "read"):
        try:
            return _connect(store, f"{path.as_uri()}?mode=ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
        # SQLite wants to make its -shm file, and this folder is not writable.
        if (wal := path.with_name(path.name + "-wal")).exists() and wal.stat().st_size:
            raise StoreUnavailable(
                f"the store {store} was not closed and its folder is not writable: "
                "open it once with write access, or make a copy of it"
            )
        return _connect(store, f"{path.as_uri()}?mode=ro&immutable=1")


def _connect(store: Path, uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        if is_new(connection):
            raise NoStore(f"there is no store at {store} yet: its log is empty")
        check_log(store, connection)
    except BaseException:
        connection.close()
        raise
    return connection


class Connections:
    """Read-only connections, as many as are in use at once. None is used on both sides of a fork."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._closed = False
        self._process = os.getpid()
        self._idle = deque([connect_read_only(store)])

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise StoreUnavailable(f"the store {self._store} is closed")
        if self._process != os.getpid():
            # SQLite forbids a connection to cross a fork, closing it included: the parent's are left alone.
            self._process, self._parents, self._idle = os.getpid(), self._idle, deque()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = connect_read_only(self._store)
        try:
            yield connection
        finally:
            self._idle.append(connection)
            if self._closed:
                self.close()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()
