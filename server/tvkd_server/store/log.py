"""What is written to log.sqlite. Each method is one transaction: after it returns, it is on disk."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store.log import APPLICATION_ID, SCHEMA, check_log, is_new, log_path
from tvkd_shared.store.reader import Place
from tvkd_shared.store.segment import FORMAT_VERSION

BUSY_MS = 5000

_ADD = """
INSERT INTO pending (key, temperature, crc, payload)
SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM sealed WHERE key = ?1 AND temperature = ?2)
ON CONFLICT DO NOTHING
"""


class IndexRow(NamedTuple):
    """Where a sealed block rests, in the order of the columns of `sealed`."""

    key: bytes
    temperature: float
    segment: int
    row: int
    states: int


def index_rows(number: int, temperature: float, keys: Sequence[bytes], states: Sequence[int]) -> list[IndexRow]:
    """Index rows of a segment's blocks, in its order; `states` are their numbers of rows."""
    return [IndexRow(key, temperature, number, row, S) for row, (key, S) in enumerate(zip(keys, states, strict=True))]


class Log:
    """The one connection that writes; the caller sees to it that one thread at a time is here.

    Raises what SQLite raises, MalformedLog and StoreUnavailable from `check_log`.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._closed = False
        self._connection = sqlite3.connect(log_path(store), isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            self._connection.execute("PRAGMA synchronous = FULL")
            if is_new(self._connection):
                self._create()
            check_log(store, self._connection)
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(
            f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
        )

    def add(self, rows: Iterable[tuple[bytes, float, int, bytes]]) -> int:
        """Adds blocks (key, temperature, CRC, payload) that are not here yet; returns the pending bytes then."""
        with self._transaction() as connection:
            connection.executemany(_ADD, rows)
            return self.pending_bytes()

    def pending_bytes(self) -> int:
        """Bytes of the blocks that are not sealed yet."""
        (pending_bytes,) = self._connection.execute("SELECT pending_bytes FROM totals").fetchone()
        return int(pending_bytes)

    def add_teacher(self, teacher: str, provenance: str) -> None:
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO teachers VALUES (?, ?)", (teacher, provenance))

    def index(self, number: int, size: int, rows: Iterable[IndexRow], pending_ids: Iterable[int]) -> None:
        """Indexes a sealed segment of `size` bytes and drops the pending rows that it holds."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO segments VALUES (?, ?)", (number, size))
            connection.executemany("DELETE FROM pending WHERE id = ?", ((id,) for id in pending_ids))
            connection.executemany("INSERT OR IGNORE INTO sealed VALUES (?, ?, ?, ?, ?)", rows)

    def pending_ids(self, temperature: float) -> dict[bytes, int]:
        """Key → row id of the pending blocks of one temperature."""
        return dict(self._connection.execute("SELECT key, id FROM pending WHERE temperature = ?", (temperature,)))

    def segments(self) -> set[int]:
        """Numbers of the segments that the index knows."""
        return {number for (number,) in self._connection.execute("SELECT number FROM segments")}

    def drop(self, place: Place) -> None:
        """Forgets a block that failed a check, so that it can be stored again."""
        with self._transaction() as connection:
            if place.segment is None:
                connection.execute("DELETE FROM pending WHERE id = ?", (place.id,))
            else:
                connection.execute(
                    "DELETE FROM sealed WHERE key = ? AND temperature = ? AND segment = ?",
                    (place.key, place.temperature, place.segment),
                )

    def shrink(self) -> None:
        """Gives the pages of sealed blocks back to the disk; a WAL that is being read keeps its size until later."""
        # execute() stops the vacuum after one page, because its rows have no column. Puts do not wait for readers.
        self._connection.executescript(
            f"PRAGMA incremental_vacuum; PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE);"
            f"PRAGMA busy_timeout = {BUSY_MS};"
        )

    def close(self) -> None:
        self._closed = True
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise StoreUnavailable(f"the store {self._store} is closed")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
