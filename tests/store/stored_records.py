"""Records whose every bit follows from a number, and how they are compared."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tvkd_shared.record import Float32, Record, column_names, value_column

TEACHER = "teacher"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where a folder's fsync takes no time, for tests with thousands of them."""
SPECIAL = np.array([-0.0, 0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38], np.float32)


def key_of(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def record_of(number: int, temperatures: tuple[float, ...] = (), variant: int = 0) -> Record:
    """The record stored under `key_of(number)`; another variant has other numbers and the same length."""
    T = 1 + number * 7 % 40
    random = np.random.default_rng([number, variant])

    def row(length: int) -> Float32:
        numbers = random.normal(20, 5, length).astype(np.float32)
        return np.where(random.random(length) < 0.2, random.choice(SPECIAL, length), numbers)

    action_logits, entropies, value_1 = row(T), row(T + 1), row(T + 1)
    further = {tau: row(T + 1) + np.float32(tau) for tau in sorted(temperatures)}
    # Not `Record.of`: these columns are the same whatever columns a test declares.
    columns = ("value_1", "action_logit", "entropy", *map(value_column, further))
    rows = [value_1, np.append(action_logits, np.float32(np.nan)), entropies, *further.values()]
    return Record(columns, np.stack(rows, 1))


def bits(record: Record | None) -> dict[str, bytes] | None:
    """Every number of a record by column, to the bit; None for a miss."""
    return None if record is None else {name: record.column(name).tobytes() for name in record.columns}


def found_in(source, keys: Iterable[bytes], temperatures: Iterable[float] = ()) -> list[dict[str, bytes] | None]:
    """As `bits`, what a store has of each key: all columns at once, or one by one where any is missing."""
    keys, columns = list(keys), column_names(temperatures)
    whole = [bits(record) for record in source.get(keys, columns)]
    return [record or _columns_found(source, key, columns) for key, record in zip(keys, whole, strict=True)]


def _columns_found(source, key: bytes, columns: Iterable[str]) -> dict[str, bytes] | None:
    found = {name: record.column(name).tobytes() for name in columns for record in source.get([key], [name]) if record}
    return found or None


def numbered(numbers: Iterable[int], temperatures: tuple[float, ...] = ()) -> list[tuple[bytes, Record]]:
    """What `put` takes, for these numbers."""
    return [(key_of(number), record_of(number, temperatures)) for number in numbers]


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << position % 8
    file.write_bytes(content)


def as_killed(live: Path, killed: Path) -> Path:
    """The files as they are now: what a killed process leaves."""
    return shutil.copytree(live, killed, ignore=shutil.ignore_patterns("*-shm"))  # a reboot leaves no shared memory
