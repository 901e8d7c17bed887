"""What a store promises while nothing is broken."""

import hashlib
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_records import TEACHER, bits, found_in, key_of, numbered, record_of

from tvkd_shared.record import Record, column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.wire import TeacherInfo


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path / "store")) as store:
        yield store


def test_every_float32_comes_back_to_the_bit_from_the_log_and_from_a_segment(store):
    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=5, max_size=5))
    @settings(max_examples=50, deadline=None)
    def put(numbers):
        row = np.array([*numbers, -0.0, 1e-45], np.float32)
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        records[key] = Record.of({1.0: row, 2.0: -row}, row[1:], row[::-1].copy())
        store.put(TEACHER, [(key, records[key])])

    records: dict[bytes, Record] = {}
    put()
    for _ in range(2):
        found = store.get(list(records), column_names([2.0]))
        assert [bits(record) for record in found] == [bits(record) for record in records.values()]
        store.seal()


def test_the_first_write_stays_and_is_counted_once(tmp_path):
    for _ in range(2):
        with closing(open_store(tmp_path)) as store:
            for variant in (0, 1, 2):
                store.put(TEACHER, [(key_of(5), record_of(5, variant=variant))])
                assert bits(store.get([key_of(5)])[0]) == bits(record_of(5))
                assert store.counts().sequences == 1
                store.seal()


def test_the_columns_asked_for_come_back_and_no_others(store):
    store.put(TEACHER, [(key_of(1), record_of(1, (0.5, 3.25)))])
    for columns in [column_names(), column_names([3.25, 0.5]), ("value_0.5",), ("entropy", "value_1")]:
        (record,) = store.get([key_of(1)], columns)
        assert record.columns == columns
        assert bits(record).items() <= bits(record_of(1, (0.5, 3.25))).items()
    assert store.get([key_of(1)], column_names([2.0])) == [None]


def test_what_a_caller_writes_into_a_record_stays_with_the_caller(store):
    store.put(TEACHER, numbered([1]))
    for _ in range(2):
        (record,) = store.get([key_of(1)])
        assert bits(record) == bits(record_of(1))
        for row in (record.values[1.0], record.action_logits, record.entropies):
            row[:] = 7
        store.seal()


def test_a_key_asked_twice_comes_twice_and_the_order_is_the_callers(store):
    store.put(TEACHER, numbered([1, 2]))
    asked = [2, 9, 1, 2]
    found = found_in(store, [key_of(n) for n in asked])
    assert found == [bits(record_of(n)) if n != 9 else None for n in asked]


def test_a_record_longer_than_a_chunk_and_many_records_read_back(store):
    rows = np.random.default_rng(0).normal(size=(3, 10_001)).astype(np.float32)
    long = Record.of({1.0: rows[0]}, rows[1, 1:], rows[2])
    many = numbered(range(5000))
    store.put(TEACHER, [(b"long" * 4, long), *many])
    store.seal()
    assert bits(store.get([b"long" * 4])[0]) == bits(long)
    assert found_in(store, [key for key, _ in many]) == [bits(record) for _, record in many]


def test_teachers_are_kept_once_each(store):
    teacher = TeacherInfo(
        id="t", name="n", dtype="float32", vocab_size=8, longest_sequence=16, engine="e", engine_version="1",
        temperatures=(0.5, 2.0),
    )  # fmt: skip
    store.add_teacher(teacher.id, teacher.model_dump(mode="json"))
    store.add_teacher(teacher.id, teacher.model_dump(mode="json"))
    with closing(StoreReader(store.place)) as reader:
        assert reader.teachers() == store.teachers() == {"t": teacher.model_dump(mode="json")}


def test_a_key_of_another_length_or_a_temperature_that_is_none_is_refused(store):
    with pytest.raises(ValueError, match="3 bytes, not 16"):
        store.put(TEACHER, [(b"abc", record_of(1))])
    row = np.ones(3, np.float32)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            Record.of({1.0: row, temperature: row}, row[1:], row)


def test_a_sealed_block_is_in_a_segment_and_no_longer_recent(store):
    store.put(TEACHER, numbered([1, 2]))
    assert len(store.recent_rows()) == 2
    store.seal()
    assert not store.recent_rows()
    store.seal()
    assert len(store.files.names("commits")) == 1, "what is empty makes no segment"


def test_segments_hold_one_teacher_and_one_column_list_each(store):
    store.put("one", numbered([1, 2]))
    store.put("one", numbered([1, 2], (0.5,)))
    store.put("other", numbered([3]))
    store.seal()
    entries = store.catalog.segments.values()
    assert {(entry.teacher, entry.columns, entry.records) for entry in entries} == {
        ("one", column_names(), 2), ("one", ("value_0.5",), 2), ("other", column_names(), 1),
    }  # fmt: skip


def test_a_closed_store_leaves_little_but_its_segments_and_counts_their_bytes(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered(range(3000)))
    sizes = {file.relative_to(tmp_path): file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()}
    with closing(StoreReader(tmp_path)) as reader:
        counted = {"segments", "index", "recent.sqlite"}
        assert reader.counts().bytes == sum(size for file, size in sizes.items() if file.parts[0] in counted)
        assert sum(sizes.values()) < 1.2 * reader.counts().bytes
    assert {file.parts[0] for file in sizes} == {
        "store.json",
        "commits",
        "segments",
        "index",
        "recent.sqlite",
        "recent.json",
    }
    assert not [file for file in sizes if file.name.startswith(".")]
