"""The store beside four simpler ones, in one run: durable writes, bytes a token, reads, opening.

    python benchmarks/store.py [--sequences 2000] [--tokens 300]

"tvkd"         a put is on disk when it returns
"flat file"    append and fdatasync, a dict of places, memory-mapped reads: the limit, with no check and no index
"LMDB"         key → blob, each put a synced transaction
"SQLite"       one ordinary table, key → blob, WAL, synchronous FULL, as its makers advise for blobs of this size
"zarr append"  one growing Zarr array: zarr makes no fsync, so nothing is durable

A disk's speed changes from minute to minute: the designs take turns, and the median of their rounds counts. Sealing
goes on in the background of the store's puts. Cold reads come from a reader opened anew, keys in random order; the
operating system's page cache is warm for all. Warm ones are the same reads again. The first table has each system's own
figure, the second how many times that of each alternative tvkd has; of bytes and milliseconds, smaller is better.
Opening a flat file or a zarr array leaves out that its dict of places would have to come from somewhere.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from store_alternatives import FlatFile, Lmdb, Records, Sqlite, ZarrAppend

from tvkd_shared.record import Record
from tvkd_shared.store import StoreReader, open_store


class Tvkd:
    name = "tvkd"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = open_store(path)

    def put(self, records: Records) -> None:
        self.writer.put("teacher", records)

    def finish(self) -> None:
        self.writer.close()

    def open(self) -> Callable:
        return StoreReader(self.path).get


def random_records(count: int, tokens: int) -> list[tuple[bytes, Record]]:
    """Values that wander as a teacher's do: float32 noise in the low bits, neighbours alike in the high ones."""
    random = np.random.default_rng(0)

    def one(T: int) -> Record:
        value_1 = (20 + np.cumsum(random.normal(0, 0.5, T + 1))).astype(np.float32)
        action_logits = (value_1[:-1] - random.exponential(0.7, T)).astype(np.float32)
        return Record.of({1.0: value_1}, action_logits, random.exponential(1.0, T + 1).astype(np.float32))

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
    started = time.perf_counter()
    design_64.open()
    figures["open, milliseconds"] = 1e3 * (time.perf_counter() - started)
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
    parser.add_argument("--rounds", type=int, default=5, help="of all designs in turn; the median counts")
    parser.add_argument("--folder", type=Path, help="where to write, to measure another disk")
    arguments = parser.parse_args()
    records = random_records(arguments.sequences, arguments.tokens)
    print(f"{len(records)} sequences, {sum(scored.length for _, scored in records)} tokens\n")
    designs = (Tvkd, FlatFile, Lmdb, Sqlite, ZarrAppend)
    rounds: dict[str, list[dict[str, float]]] = {design.name: [] for design in designs}
    for _ in range(arguments.rounds):
        for design in designs:
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            rounds[design.name].append(measure(design, folder, records))
            shutil.rmtree(folder)
    figures = {
        name: {what: statistics.median(one[what] for one in seen) for what in seen[0]} for name, seen in rounds.items()
    }
    print("| | " + " | ".join(figures) + " |\n" + "|---" * (1 + len(figures)) + "|")
    for what in figures["tvkd"]:
        print(f"| {what} | " + " | ".join(f"{row[what]:,.1f}" for row in figures.values()) + " |")
    others = [name for name in figures if name != "tvkd"]
    print("\n| tvkd's figure over that of | " + " | ".join(others) + " |\n" + "|---" * (1 + len(others)) + "|")
    for what, own in figures["tvkd"].items():
        print(f"| {what} | " + " | ".join(f"{own / figures[name][what]:.2f}" for name in others) + " |")


if __name__ == "__main__":
    main()
