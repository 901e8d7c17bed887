"""The index alone, by number of keys: bytes a key on disk and in memory, opening, looking up.

    python benchmarks/store_index.py --keys 100000 1000000 10000000

Keys are random, as digests are, in segments of 50,000. "memory" is what the process's own memory grows by when the
index is opened: its arrays are mapped from the file, and the system may drop their pages at will. "open" maps the file
and checks every byte of it; "made anew" sorts the keys of every segment instead, as when the file is lost. The last
line is computed from the one before: bytes and opening grow with the keys, a look-up with their logarithm.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tvkd_shared.store.index import Index

SEGMENT_KEYS = 50_000
BATCH = 64


def resident() -> int:
    """Bytes of this process's own memory, without what is mapped from files."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def keys_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8)


def make(path: Path, count: int) -> float:
    """Write the index of so many keys. Returns the seconds that its making took."""
    keys_N16 = keys_of(count)
    started = time.perf_counter()
    index = Index()
    for first in range(0, count, SEGMENT_KEYS):
        index.add(f"segment-{first // SEGMENT_KEYS:06d}", keys_N16[first : first + SEGMENT_KEYS])
    index.save(path)
    return time.perf_counter() - started


def open_and_find(path: Path, count: int) -> dict[str, float]:
    asked = [row.tobytes() for row in keys_of(count)[np.random.default_rng(1).integers(0, count, 200 * BATCH)]]
    before = resident()
    started = time.perf_counter()
    index = Index.load(path)
    opened = time.perf_counter() - started
    assert index is not None
    memory = resident() - before
    started = time.perf_counter()
    found = [index.find(asked[first : first + BATCH]) for first in range(0, len(asked), BATCH)]
    finding = time.perf_counter() - started
    assert all(sum(map(len, hits.values())) >= BATCH for hits in found)
    return {"memory": memory, "open": opened, "find": finding / len(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    counts = sorted(parser.parse_args().keys)
    heads = ("keys", "bytes a key on disk", "memory, bytes a key", "open, s", "made anew, s", "find by 64, µs a key")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / "index"
            # A process of its own each: memory is measured.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                made = process.submit(make, path, count).result()
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seen = process.submit(open_and_find, path, count).result()
            size = path.stat().st_size
            print(
                f"| {count:,} | {size / count:.2f} | {seen['memory'] / count:.2f} | {seen['open']:.3f} | {made:.2f} | "
                f"{1e6 * seen['find']:.1f} |",
                flush=True,
            )
    factor = 10**8 / count
    growth = np.log2(10**8) / np.log2(count)
    print(
        f"| 100,000,000, computed | {size / count:.2f}, {size * factor / 1e9:.1f} GB | {seen['memory'] / count:.2f} | "
        f"{seen['open'] * factor:.1f} | {made * factor * growth:.0f} | {1e6 * seen['find'] * growth:.1f} |"
    )


if __name__ == "__main__":
    main()
