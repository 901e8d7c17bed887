"""The store beside two simpler ones, in one run: durable writes, bytes a token, reads.

    python benchmarks/store.py --sequences 2000 --tokens 300

"store"        ours: a put is on disk when it returns
"sqlite blob"  one table, key → blob, WAL, synchronous FULL: as durable
"zarr append"  one growing Zarr array, `append` a put, offsets in memory: zarr makes no fsync, so nothing is durable

Cold reads come from a reader opened anew, keys in random order; the operating system's page cache is warm for all.
Warm ones are the same reads again. Ratios are ours over the alternative's; of bytes, smaller is better.
"""

import argparse
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from tvkd_server.store import Store
from tvkd_shared.scored import Scored
from tvkd_shared.store import StoreReader
from tvkd_shared.store.block import BASE, blocks, record

Records = Sequence[tuple[bytes, Scored]]


class Ours:
    name = "store"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Store(path)
        self.put = self.writer.put

    def finish(self) -> None:
        self.writer.close()

    def open(self) -> Callable:
        return StoreReader(self.path).get


class SqliteBlob:
    name = "sqlite blob"

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.connection = self._connect()
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE record (key BLOB PRIMARY KEY, rows BLOB) WITHOUT ROWID")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path / "blobs.sqlite")

    def put(self, records: Records) -> None:
        with self.connection:
            self.connection.executemany(
                "INSERT OR IGNORE INTO record VALUES (?, ?)",
                [(key, dict(blocks(scored))[BASE].tobytes()) for key, scored in records],
            )

    def finish(self) -> None:
        self.connection.close()

    def open(self) -> Callable:
        connection = self._connect()

        def get(keys: Sequence[bytes]) -> list[Scored]:
            found = [connection.execute("SELECT rows FROM record WHERE key = ?", (key,)).fetchone()[0] for key in keys]
            return [record(np.frombuffer(rows, np.float32).reshape(-1, 3), {}) for rows in found]

        return get


class ZarrAppend:
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
        rows = [dict(blocks(scored))[BASE] for _, scored in records]
        start = self.array.shape[0]
        self.array.append(np.concatenate(rows))
        for (key, _), block in zip(records, rows, strict=True):
            self.places[key] = (start, start := start + len(block))

    def finish(self) -> None:
        pass

    def open(self) -> Callable:
        array = zarr.open_array(self.path, mode="r")
        return lambda keys: [record(array[slice(*self.places[key])], {}) for key in keys]


def random_records(count: int, tokens: int) -> list[tuple[bytes, Scored]]:
    """Values that wander as a teacher's do: float32 noise in the low bits, neighbours alike in the high ones."""
    random = np.random.default_rng(0)

    def one(T: int) -> Scored:
        value_1 = (20 + np.cumsum(random.normal(0, 0.5, T + 1))).astype(np.float32)
        action_logits = (value_1[:-1] - random.exponential(0.7, T)).astype(np.float32)
        return Scored({1.0: value_1}, action_logits, random.exponential(1.0, T + 1).astype(np.float32))

    lengths = random.integers(max(1, tokens // 3), 2 * tokens - tokens // 3, count)
    return [(random.bytes(16), one(int(T))) for T in lengths]


def rate(work: Callable, batches: Sequence) -> float:
    """Items a second over the batches."""
    start = time.perf_counter()
    for batch in batches:
        work(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def in_batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def measure(design: type, folder: Path, records: Records) -> dict[str, float]:
    few = records[: max(1, len(records) // 10)]
    single = design(folder / "single")
    one_by_one = rate(single.put, in_batches(few, 1))
    single.finish()
    design_64 = design(folder / "batched")
    by_64 = rate(design_64.put, in_batches(records, 64))
    design_64.finish()
    on_disk = sum(file.stat().st_size for file in (folder / "batched").rglob("*") if file.is_file())
    figures = {
        "put by 64, sequences/s": by_64,
        "put one, sequences/s": one_by_one,
        "bytes a token": on_disk / sum(scored.length for _, scored in records),
    }
    keys = [records[n][0] for n in np.random.default_rng(1).permutation(len(records))]
    for size, asked in ((1, keys[: len(few)]), (64, keys)):
        get = design_64.open()
        for warmth in ("cold", "warm"):
            figures[f"get {size} {warmth}, sequences/s"] = rate(get, in_batches(asked, size))
    (right,) = get([records[0][0]])
    assert right.values[1.0].tobytes() == records[0][1].values[1.0].tobytes()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=300, help="mean length of a completion")
    parser.add_argument("--folder", type=Path, help="where to write, to measure another disk")
    arguments = parser.parse_args()
    records = random_records(arguments.sequences, arguments.tokens)
    print(f"{len(records)} sequences, {sum(scored.length for _, scored in records)} tokens\n")
    figures = {}
    for design in (Ours, SqliteBlob, ZarrAppend):
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        figures[design.name] = measure(design, folder, records)
        shutil.rmtree(folder)
    ours = figures["store"]
    print("| | " + " | ".join([*figures, *(f"store / {name}" for name in figures if name != "store")]) + " |")
    print("|---" * (2 * len(figures)) + "|")
    for what in ours:
        numbers = [f"{row[what]:,.1f}" for row in figures.values()]
        ratios = [f"{ours[what] / row[what]:.2f}" for name, row in figures.items() if name != "store"]
        print(f"| {what} | " + " | ".join(numbers + ratios) + " |")


if __name__ == "__main__":
    main()
