"""What a store promises while nothing is broken."""

import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stored_records import bits, key_of, record_of

from tvkd_server.store import Store
from tvkd_shared.scored import Scored
from tvkd_shared.store import StoreReader
from tvkd_shared.wire import TeacherInfo

TEMPERATURES = (0.5, 1.0, 3.25)


class StoreIsADict(RuleBasedStateMachine):
    """Any order of puts, seals, reopens and crashes reads as a dict that keeps what was put first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name, "0")
        self.store = Store(self.path)
        self.expected: dict[int, dict[object, bytes]] = {}

    @rule(
        batch=st.lists(
            st.tuples(st.integers(0, 5), st.integers(0, 3), st.sets(st.sampled_from([0.5, 3.25]))), max_size=4
        )
    )
    def put(self, batch):
        records = [(number, record_of(number, tuple(further), variant)) for number, variant, further in batch]
        self.store.put([(key_of(number), record) for number, record in records])
        for number, record in records:
            self.expected[number] = bits(record) | self.expected.get(number, {})

    @rule()
    def seal(self):
        self.store.seal()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = Store(self.path)

    @rule(lose_the_log=st.booleans())
    def crash(self, lose_the_log):
        """Go on with the files as they are now, as after kill -9; sealed before, the log itself may be lost."""
        if lose_the_log:
            self.store.seal()
        crashed = self.path.with_name(str(int(self.path.name) + 1))
        shutil.copytree(
            self.path, crashed, ignore=shutil.ignore_patterns("*-shm", "log.sqlite*" if lose_the_log else "")
        )
        self.store.close()
        self.path, self.store = crashed, Store(crashed)

    @invariant()
    def reads_as_the_dict(self):
        expected = [self.expected.get(number) for number in range(7)]
        keys = [key_of(number) for number in range(7)]
        assert [bits(record) for record in self.store.get(keys, TEMPERATURES)] == expected
        with closing(StoreReader(self.path)) as reader:
            assert [bits(record) for record in reader.get(keys, TEMPERATURES)] == expected
            counts = reader.counts()
        lengths = [record_of(number).length for number in self.expected]
        assert (counts.sequences, counts.tokens, counts.corrupt) == (len(lengths), sum(lengths), 0)

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


StoreIsADict.TestCase.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)
TestStoreIsADict = StoreIsADict.TestCase


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store")) as store:
        yield store


def test_every_float32_comes_back_to_the_bit_from_the_log_and_from_a_segment(store):
    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=5, max_size=5))
    @settings(max_examples=50, deadline=None)
    def put(numbers):
        row = np.array([*numbers, -0.0, 1e-45], np.float32)
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        records[key] = Scored({1.0: row, 2.0: -row}, row[1:], row[::-1].copy())
        store.put([(key, records[key])])

    records: dict[bytes, Scored] = {}
    put()
    for _ in range(2):
        found = store.get(list(records), [2.0])
        assert [bits(record) for record in found] == [bits(record) for record in records.values()]
        store.seal()


def test_the_first_write_stays_and_is_counted_once(tmp_path):
    for _ in range(2):
        with closing(Store(tmp_path)) as store:
            for variant in (0, 1, 2):
                store.put([(key_of(5), record_of(5, variant=variant))])
                assert bits(store.get([key_of(5)])[0]) == bits(record_of(5))
                assert store.counts().sequences == 1
                store.seal()


def test_only_the_asked_temperatures_come_back(store):
    store.put([(key_of(1), record_of(1, (0.5, 3.25)))])
    assert [list(store.get([key_of(1)], asked)[0].values) for asked in [(1.0,), (3.25, 0.5), (2.0,)]] == [
        [1.0],
        [1.0, 3.25, 0.5],
        [1.0],
    ]


def test_what_a_caller_writes_into_a_record_stays_with_the_caller(store):
    store.put([(key_of(1), record_of(1))])
    for _ in range(2):
        (record,) = store.get([key_of(1)])
        assert bits(record) == bits(record_of(1))
        for row in (record.values[1.0], record.action_logits, record.entropies):
            row[:] = 7
        store.seal()


def test_a_key_asked_twice_comes_twice_and_the_order_is_the_callers(store):
    store.put([(key_of(n), record_of(n)) for n in (1, 2)])
    asked = [2, 9, 1, 2]
    found = [bits(record) for record in store.get([key_of(n) for n in asked])]
    assert found == [bits(record_of(n)) if n != 9 else None for n in asked]


def test_a_record_longer_than_a_chunk_and_many_records_read_back(store):
    rows = np.random.default_rng(0).normal(size=(3, 10_001)).astype(np.float32)
    long = Scored({1.0: rows[0]}, rows[1, 1:], rows[2])
    many = [(key_of(n), record_of(n)) for n in range(5000)]
    store.put([(b"long" * 4, long), *many])
    store.seal()
    assert bits(store.get([b"long" * 4])[0]) == bits(long)
    assert [bits(record) for record in store.get([key for key, _ in many])] == [bits(record) for _, record in many]


def test_readers_see_each_put_at_once_also_while_segments_are_sealed(tmp_path):
    with closing(Store(tmp_path, seal_bytes=10_000)) as store, closing(StoreReader(tmp_path)) as reader:
        put: list[int] = []
        finished = threading.Event()

        def misses(source: StoreReader) -> list[int]:
            missed = []
            while not finished.is_set():
                numbers = list(put)
                records = source.get([key_of(n) for n in numbers], [0.5])
                missed += [n for n, record in zip(numbers, records, strict=True) if bits(record) != expected[n]]
            return missed

        expected: list[dict[object, bytes] | None] = []
        with ThreadPoolExecutor() as pool:
            reads = [pool.submit(misses, source) for source in (reader, reader, store, store)]
            while len(list((tmp_path / "segments").iterdir())) < 6:
                record = record_of(len(put), (0.5,))
                store.put([(key_of(len(put)), record)])
                expected.append(bits(record))
                put.append(len(put))
            finished.set()
        assert [read.result() for read in reads] == [[], [], [], []]


def test_teachers_are_kept_once_each(store):
    teacher = TeacherInfo(
        id="t", name="n", dtype="float32", vocab_size=8, longest_sequence=16, engine="e", engine_version="1",
        temperatures=(0.5, 2.0),
    )  # fmt: skip
    store.add_teacher(teacher)
    store.add_teacher(teacher)
    with closing(StoreReader(store.path)) as reader:
        assert reader.teachers() == store.teachers() == {"t": teacher.model_dump(mode="json")}


def test_a_key_of_another_length_or_a_temperature_that_is_none_is_refused(store):
    with pytest.raises(ValueError, match="3 bytes, not 16"):
        store.put([(b"abc", record_of(1))])
    row = np.ones(3, np.float32)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            store.get([key_of(1)], [temperature])
        with pytest.raises(ValueError, match="positive"):
            store.put([(key_of(1), Scored({1.0: row, temperature: row}, row[1:], row))])


def test_a_closed_store_leaves_little_but_its_segments(tmp_path):
    with closing(Store(tmp_path)) as store:
        store.put([(key_of(n), record_of(n)) for n in range(3000)])
    with closing(StoreReader(tmp_path)) as reader:
        held = reader.counts().bytes
    sizes = {file: file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()}
    assert held == sum(size for file, size in sizes.items() if file.name not in ("lock", "log.sqlite-shm"))
    assert held < 1.5 * sum(size for file, size in sizes.items() if "segments" in file.parts)


def test_a_store_that_stays_open_gives_the_pages_of_sealed_blocks_back(tmp_path):
    def on_disk(*names):
        return sum((tmp_path / name).stat().st_size for name in names)

    with closing(Store(tmp_path)) as store:
        store.put([(key_of(n), record_of(n)) for n in range(3000)])
        peak = store.counts().bytes
        store.seal()
        assert on_disk("log.sqlite", "log.sqlite-wal") < peak / 3
        segments = sum(file.stat().st_size for file in (tmp_path / "segments").rglob("*") if file.is_file())
        assert store.counts().bytes == on_disk("log.sqlite", "log.sqlite-wal") + segments
