"""Reading a store: beside a live writer, or with no server at all."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tvkd_shared.scored import Float32, Scored
from tvkd_shared.store.block import BASE, Damaged, from_log, record
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.log import Connections, MalformedLog, disk, log_path
from tvkd_shared.store.segment import Segment, segment_path

CACHE_BYTES = 128 << 20
OPEN_SEGMENTS = 256

_FIND = """
SELECT temperature, id, crc, payload, NULL, NULL, NULL FROM pending WHERE key = ?1 UNION ALL
SELECT temperature, NULL, NULL, NULL, segment, row, states FROM sealed WHERE key = ?1
"""


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """sequences and tokens held; bytes on disk; corrupt: blocks that failed a check since this store was opened."""

    sequences: int
    tokens: int
    bytes: int
    corrupt: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block rests: row `row` of segment `segment`, or, segment being None, row `id` of the pending ones."""

    key: bytes
    temperature: float
    id: int
    crc: int
    payload: bytes
    segment: int | None
    row: int
    states: int


def check_temperatures(temperatures: Iterable[float]) -> None:
    """Raises ValueError when one of them is not a positive finite number."""
    for temperature in temperatures:
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature {temperature} is not a positive finite number")


class StoreReader:
    """A store, read-only. Several processes may read at once, also beside a live writer. Thread safe.

    Raises NoStore when there is no store at `path`, StoreUnavailable when its disk or zarr fails. Bytes that fail a
    check are never served and never raise: they count as missing, and in `counts().corrupt`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._corrupt = 0
        self._corrupt_lock = threading.Lock()
        self._connections = Connections(self.path)
        self._cache = ChunkCache(CACHE_BYTES)
        self._segment = lru_cache(OPEN_SEGMENTS)(self._open_segment)

    def get(self, keys: Sequence[bytes], temperatures: Sequence[float] = (1.0,)) -> list[Scored | None]:
        """The record of each key, None where it is missing.

        A record's `values` hold temperature 1.0 and those of the asked ones that are stored. Raises ValueError when a
        temperature is not a positive finite number, StoreUnavailable when the disk fails.
        """
        check_temperatures(temperatures)
        further = dict.fromkeys(temperature for temperature in temperatures if temperature != 1.0)
        with disk(self.path, "read"), self._connections.one() as connection:
            return [self._record(connection, key, list(further)) for key in keys]

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Teacher id → provenance, the fields of TeacherInfo."""
        with disk(self.path, "read"), self._connections.one() as connection:
            rows = connection.execute("SELECT id, provenance FROM teachers").fetchall()
            return {teacher: json.loads(provenance) for teacher, provenance in rows}

    def counts(self) -> StoreCounts:
        with disk(self.path, "read"), self._connections.one() as connection:
            totals = connection.execute("SELECT sequences, tokens, segment_bytes FROM totals").fetchone()
            sequences, tokens, segment_bytes = totals
            log = log_path(self.path)
            files = (log, log.with_name(log.name + "-wal"))
            log_bytes = sum(file.stat().st_size for file in files if file.exists())
        return StoreCounts(sequences, tokens, segment_bytes + log_bytes, self._corrupt)

    def close(self) -> None:
        self._connections.close()

    def _record(self, connection: sqlite3.Connection, key: bytes, further: list[float]) -> Scored | None:
        try:
            with disk(self.path, "read"):
                rows = connection.execute(_FIND, (key,)).fetchall()
        except MalformedLog as damage:
            self._damaged(None, damage)
            return None
        blocks: dict[float, Float32] = {}
        for place in (Place(key, *row) for row in rows):
            if place.temperature == BASE or place.temperature in further:
                try:
                    blocks[place.temperature] = self._block(place)
                except Damaged as damage:
                    self._damaged(place, damage)
        if BASE not in blocks:
            return None
        base = blocks[BASE]
        asked = {tau: blocks[tau] for tau in further if tau in blocks and len(blocks[tau]) == len(base)}
        return record(base, asked)

    def _block(self, place: Place) -> Float32:
        if place.segment is None:
            return from_log(place.key, place.temperature, place.crc, place.payload)
        # A flipped bit in the index can change the type of a column.
        if not all(isinstance(number, int) for number in (place.segment, place.row, place.states)):
            raise Damaged("a row of the index has columns of another type")
        segment = self._segment(place.segment)
        if segment.temperature != place.temperature:
            raise Damaged(f"{segment.path} has temperature {segment.temperature}, not {place.temperature}")
        return segment.block(place.row, place.key, place.states)

    def _damaged(self, place: Place | None, damage: Exception) -> None:
        """Called for each block that failed a check, with None when the log itself is malformed. The writer mends."""
        with self._corrupt_lock:
            self._corrupt += 1

    def _open_segment(self, number: int) -> Segment:
        return Segment(segment_path(self.path, number), self._cache)
