"""Four other ways to keep the same blocks: what benchmarks/store.py compares the store with."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
import numpy as np
import zarr
from zarr.codecs import BloscCodec

from tvkd_shared.record import Record, column_names

Records = Sequence[tuple[bytes, Record]]


def from_bytes(content: bytes) -> Record:
    return Record.checked(column_names(), np.frombuffer(content, np.float32).reshape(-1, 3))


class FlatFile:
    """Rows appended to a file with fdatasync, places in a dict, reads from a memory map: the limit, with no check."""

    name = "flat file"

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.file = path / "rows"
        self.descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.places: dict[bytes, tuple[int, int]] = {}
        self.end = 0

    def put(self, records: Records) -> None:
        content = bytearray()
        for key, scored in records:
            rows = scored.numbers
            self.places[key] = (self.end, self.end + len(rows))
            self.end += len(rows)
            content += rows.tobytes()
        os.write(self.descriptor, content)
        os.fdatasync(self.descriptor)

    def finish(self) -> None:
        os.close(self.descriptor)

    def open(self) -> Callable:
        rows = np.memmap(self.file, np.float32, "r").reshape(-1, 3)
        return lambda keys: [Record.checked(column_names(), rows[slice(*self.places[key])].copy()) for key in keys]


class Lmdb:
    """One key, one blob, each put a synced transaction."""

    name = "LMDB"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = lmdb.open(str(path), map_size=1 << 36)

    def put(self, records: Records) -> None:
        with self.environment.begin(write=True) as transaction:
            for key, scored in records:
                transaction.put(key, scored.numbers.tobytes(), overwrite=False)

    def finish(self) -> None:
        self.environment.close()

    def open(self) -> Callable:
        self.environment.close()  # a process may open it once
        self.environment = environment = lmdb.open(str(self.path), map_size=1 << 36, readonly=True)

        def get(keys: Sequence[bytes]) -> list[Record]:
            with environment.begin() as transaction:
                return [from_bytes(transaction.get(key)) for key in keys]

        return get


class Sqlite:
    """One ordinary table with an index over the keys, WAL, synchronous FULL."""

    name = "SQLite"

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.connection = self._connect()
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE record (key BLOB PRIMARY KEY, rows BLOB)")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path / "blobs.sqlite")

    def put(self, records: Records) -> None:
        with self.connection:
            self.connection.executemany(
                "INSERT OR IGNORE INTO record VALUES (?, ?)",
                [(key, scored.numbers.tobytes()) for key, scored in records],
            )

    def finish(self) -> None:
        self.connection.close()

    def open(self) -> Callable:
        connection = self._connect()

        def get(keys: Sequence[bytes]) -> list[Record]:
            return [
                from_bytes(connection.execute("SELECT rows FROM record WHERE key = ?", (key,)).fetchone()[0])
                for key in keys
            ]

        return get


class ZarrAppend:
    """One growing Zarr array, `append` a put, places in a dict: zarr makes no fsync, so nothing is durable."""

    name = "zarr append"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[bytes, tuple[int, int]] = {}
        self.array = zarr.create_array(
            path,
            shape=(0, 3),
            chunks=(4096, 3),
            dtype="f4",
            compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle")],
        )

    def put(self, records: Records) -> None:
        rows = [scored.numbers for _, scored in records]
        start = self.array.shape[0]
        self.array.append(np.concatenate(rows))
        for (key, _), block in zip(records, rows, strict=True):
            self.places[key] = (start, start := start + len(block))

    def finish(self) -> None:
        pass

    def open(self) -> Callable:
        array = zarr.open_array(self.path, mode="r")
        return lambda keys: [Record.checked(column_names(), array[slice(*self.places[key])]) for key in keys]
