"""Readers see what was acknowledged at once, in this process and in others, while segments are sealed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from stored_records import TEACHER, as_killed, bits, key_of, numbered, record_of

from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, open_store

READER = """
import sys
from stored_records import bits, key_of, record_of
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader

reader = StoreReader(sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    numbers = range(int(line))
    found = reader.get([key_of(n) for n in numbers], column_names([0.5]))
    print([n for n in numbers if bits(found[n]) != bits(record_of(n, (0.5,)))], reader.counts().corrupt, flush=True)
"""


def test_readers_see_each_put_at_once_also_while_segments_are_sealed(tmp_path):
    with closing(open_store(tmp_path, seal_bytes=10_000)) as store, closing(StoreReader(tmp_path)) as reader:
        put: list[int] = []
        finished = threading.Event()

        def misses(source: StoreReader) -> list[int]:
            missed = []
            while not finished.is_set():
                numbers = list(put)
                records = source.get([key_of(n) for n in numbers], column_names([0.5]))
                missed += [n for n, record in zip(numbers, records, strict=True) if bits(record) != expected[n]]
            return missed

        expected: list[dict[object, bytes] | None] = []
        with ThreadPoolExecutor() as pool:
            reads = [pool.submit(misses, source) for source in (reader, reader, store, store)]
            while len(store.catalog.segments) < 6:
                record = record_of(len(put), (0.5,))
                store.put(TEACHER, [(key_of(len(put)), record)])
                expected.append(bits(record))
                put.append(len(put))
            finished.set()
        assert [read.result() for read in reads] == [[], [], [], []]


def test_a_reader_in_another_process_sees_each_put_once_it_returned(tmp_path):
    with (
        closing(open_store(tmp_path, seal_bytes=4000)) as store,
        subprocess.Popen(
            [sys.executable, "-c", READER, tmp_path], cwd=Path(__file__).parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other,
    ):  # fmt: skip
        assert other.stdout.readline() == "open\n"
        for n in range(150):
            store.put(TEACHER, numbered([n], (0.5,)))
            other.stdin.write(f"{n + 1}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "[] 0\n"
        other.stdin.close()
        assert len(store.catalog.segments) > 4


def test_a_reader_that_opened_an_empty_store_sees_what_comes(tmp_path):
    with closing(open_store(tmp_path)) as store, closing(StoreReader(tmp_path)) as reader:
        assert reader.get([key_of(1)]) == [None]
        store.put(TEACHER, numbered([1]))
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))
        store.seal()
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))
        assert (reader.counts().sequences, reader.counts().tokens) == (1, record_of(1).length)


def test_a_reader_writes_nothing(tmp_path):
    with closing(open_store(tmp_path / "live")) as store:
        store.put(TEACHER, numbered([1]))
        store.seal()
        store.put(TEACHER, numbered([2]))
        killed = as_killed(tmp_path / "live", tmp_path / "killed")
    (killed / "index").unlink(missing_ok=True)

    # But for SQLite's shared memory, which it makes anew from its write-ahead log.
    def times():
        files = [file for file in killed.rglob("*") if file.is_file() and not file.name.endswith("-shm")]
        return {file: file.stat().st_mtime_ns for file in files}

    before = times()
    with closing(StoreReader(killed)) as reader:
        assert None not in reader.get([key_of(1), key_of(2)])
    assert times() == before
