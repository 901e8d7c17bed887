"""The durable log of blocks that are in no segment yet: files under `log/`, a local store's only.

A record is MAGIC, length and CRC-32 of the rest (little-endian, 32 bits each), then key, temperature, teacher, rows:

    16 bytes   key
     8 bytes   temperature, float64; 0 for the base block
     1 byte    length of the teacher's id
     …         the teacher's id, UTF-8
     …         the block, row by row, float32

A record that fails its check is passed over: reading goes on at the next one that does not. What a killed writer left
half written at the end of a file is such a record, and was never acknowledged.
"""

import re
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32
from tvkd_shared.store.block import Damaged, check, columns
from tvkd_shared.store.files import Files

FOLDER = "log"
MAGIC = b"\x89tvk"
DTYPE = np.dtype("<f4")
_LOG_NAME = re.compile(rf"{FOLDER}/\d{{12}}-[0-9a-f]{{8}}\.log")
_HEAD = struct.Struct("<4sII")
_BODY = struct.Struct(f"<{KEY_BYTES}sdB")


class Name(NamedTuple):
    """What a block is filed under."""

    key: bytes
    temperature: float


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A block that is in the log, shape (S, columns), and the teacher whose it is."""

    teacher: str
    block: Float32


def to_bytes(name: Name, pending: Pending) -> bytes:
    """The record of one block."""
    teacher = pending.teacher.encode()
    body = (
        _BODY.pack(name.key, name.temperature, len(teacher))
        + teacher
        + np.ascontiguousarray(pending.block, DTYPE).tobytes()
    )
    return _HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body


def records(content: bytes) -> Iterator[tuple[int, int, Name, Pending]]:
    """Each sound record, after the positions where it starts and ends."""
    at = content.find(MAGIC)
    while at >= 0:
        try:
            end, name, pending = _record(content, at)
        except (Damaged, struct.error, ValueError):
            end = at + 1
        else:
            yield at, end, name, pending
        at = content.find(MAGIC, end)


def _record(content: bytes, at: int) -> tuple[int, Name, Pending]:
    _, length, crc = _HEAD.unpack_from(content, at)
    start = at + _HEAD.size
    body = memoryview(content)[start : start + length]
    if len(body) < length or zlib.crc32(body) != crc:
        raise Damaged("a record of the log does not match its checksum")
    key, temperature, size = _BODY.unpack_from(body)
    rows = _BODY.size + size
    block = np.frombuffer(body[rows:], DTYPE).astype(np.float32).reshape(-1, len(columns(temperature)))
    teacher = bytes(body[_BODY.size : rows]).decode()
    return start + length, Name(key, temperature), Pending(teacher, check(block, temperature))


@dataclass(slots=True)
class LogFile:
    """What is read of one file. Of two records of a name the later counts: the earlier was not acknowledged."""

    pending: dict[Name, Pending] = field(default_factory=dict)
    end: int = 0
    """Where the last sound record ended; what lies behind may still be being written."""
    skipped: int = 0
    """Bytes before `end` that are in no sound record."""

    def extend(self, content: bytes) -> None:
        """Take in what the file holds from `end` on."""
        base, reached = self.end, 0
        for start, end, name, pending in records(content):
            self.skipped += start - reached
            self.pending[name] = pending
            reached = end
        self.end = base + reached


def new_log_name(after: str) -> str:
    """A name behind another, and never a name again: a reader may still know a file by it that is gone."""
    number = int(after.removeprefix(f"{FOLDER}/")[:12]) if after else 0
    return f"{FOLDER}/{number + 1:012d}-{uuid.uuid4().hex[:8]}.log"


def log_names(files: Files) -> list[str]:
    """The log's files, in the order of writing. What else lies there is not ours."""
    names = [f"{FOLDER}/{name}" for name in files.names(FOLDER)]
    return [name for name in names if _LOG_NAME.fullmatch(name)]


class LogReader:
    """The log as another process writes it, read on from where it was read before. One thread at a time."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.read: dict[str, LogFile] = {}
        """By file, in the order of writing."""
        self._merged: dict[Name, Pending] = {}

    def pending(self) -> dict[Name, Pending]:
        """Every block in the log now. Files that are gone were sealed: their blocks are found in segments."""
        before = [(name, file.end) for name, file in self.read.items()]
        there = log_names(self._files)
        self.read = {name: self.read.get(name) or LogFile() for name in there}
        for name in there:
            try:
                self.read[name].extend(self._files.read(name, self.read[name].end))
            except FileNotFoundError:
                del self.read[name]
        if before != [(name, file.end) for name, file in self.read.items()]:
            self._merged = {name: one for file in self.read.values() for name, one in file.pending.items()}
        return self._merged
