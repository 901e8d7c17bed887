"""What opening a store finds: leftovers of a crash, or a log that is missing or malformed."""

import logging
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from tvkd_server.store.log import IndexRow, Log, index_rows
from tvkd_server.store.segment import sync, write_segment
from tvkd_shared.scored import Float32
from tvkd_shared.store.block import Damaged, from_log
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.log import MalformedLog, disk, log_path
from tvkd_shared.store.segment import Segment, segment_path

_logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"\d{12}")


def open_log(store: Path) -> Log:
    """The log of a store, made or mended where it has to be, with every published segment in its index.

    Raises StoreUnavailable when the store has another format version, OSError or sqlite3.Error when the disk fails.
    """
    for leftover in _numbered(store / "tmp"):
        shutil.rmtree(store / "tmp" / f"{leftover:012d}")
    try:
        if rebuild_mark(store).exists():
            raise MalformedLog(f"{log_path(store)} was found malformed")
        with disk(store, "opened"):
            log = Log(store)
    except MalformedLog as error:
        _logger.warning("%s", error)
        _rescue_pending(store)
        log = Log(store)
    try:
        _adopt_unknown(store, log)
    except BaseException:
        log.close()
        raise
    rebuild_mark(store).unlink(missing_ok=True)
    return log


def last_number(store: Path, log: Log | None = None) -> int:
    """The highest number that a segment has had, 0 when there is none."""
    return max(_numbered(store / "segments") | (log.segments() if log else set()), default=0)


def rebuild_mark(store: Path) -> Path:
    """A file that says that the log was found malformed while it was in use."""
    return store / "rebuild"


def _numbered(folder: Path) -> set[int]:
    return {int(entry.name) for entry in folder.iterdir() if _NUMBERED.fullmatch(entry.name)}


def _rescue_pending(store: Path) -> None:
    """Seals the pending blocks that a malformed log still gives, then puts the log aside."""
    blocks: dict[float, dict[bytes, Float32]] = {}
    with closing(sqlite3.connect(log_path(store))) as connection:
        # From both ends: a malformed page stops a scan where it lies.
        for query in (
            "SELECT key, temperature, crc, payload FROM pending ORDER BY id",
            "SELECT key, temperature, crc, payload FROM pending ORDER BY id DESC",
        ):
            with suppress(sqlite3.DatabaseError):
                for key, temperature, crc, payload in connection.execute(query):
                    with suppress(Damaged):
                        blocks.setdefault(temperature, {})[key] = from_log(key, temperature, crc, payload)
    for number, (temperature, block_of_key) in enumerate(blocks.items(), last_number(store) + 1):
        write_segment(store, number, temperature, list(block_of_key), list(block_of_key.values()))
    for suffix in ("", "-wal"):
        file = log_path(store).with_name(f"log.sqlite{suffix}")
        if file.exists():
            file.replace(file.with_name(f"log.sqlite.malformed{suffix}"))
    log_path(store).with_name("log.sqlite-shm").unlink(missing_ok=True)
    sync(store)


def _adopt_unknown(store: Path, log: Log) -> None:
    """Indexes the segments that the index does not know, the last first: of two blocks of a key, the later counts."""
    unknown = _numbered(store / "segments") - log.segments()
    if unknown:
        sync(store / "segments")
    for number in sorted(unknown, reverse=True):
        path = segment_path(store, number)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows, twins = _index_rows(path, number, log)
        log.index(number, size, rows, twins)


def _index_rows(path: Path, number: int, log: Log) -> tuple[list[IndexRow], list[int]]:
    """Where a segment's blocks rest, and the ids of the pending rows that it holds; nothing if it is damaged."""
    try:
        segment = Segment(path, ChunkCache(0))
        keys, offsets = segment.index()
        twins = log.pending_ids(segment.temperature)
        if twins:
            # The last copy of a block is not dropped before the new one was read whole.
            segment.values()
    except Damaged as error:
        _logger.warning("%s; its values count as missing", error)
        return [], []
    rows = index_rows(number, segment.temperature, [key.tobytes() for key in keys], np.diff(offsets).tolist())
    return rows, [twins[row.key] for row in rows if row.key in twins]
