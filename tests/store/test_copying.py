"""Copying: what arrives in the other store, beside whatever happens in the first, and what is said of it."""

from contextlib import closing

import pytest
from stored_records import TEACHER, bits, key_of, numbered, record_of

from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.certificate import Certificate, write_certificate
from tvkd_shared.store.compact import SEGMENT_BYTES, compact
from tvkd_shared.store.copying import CopyCounts, copy
from tvkd_shared.store.gc import collect

CERTIFICATE = Certificate(
    teacher=TEACHER, made=1.0, commit=1, sequences=1, numbers=9, reference="r", errors={"1.0": 0.0}
)


def made(path, *segments, mantissa_bits=None):
    """A store with a segment for each list of records, in their order, also of keys that it has already."""
    open_store(path, mantissa_bits=mantissa_bits).close()
    with closing(open_store(path)) as store:
        for records in segments:
            blocks = {key: record.numbers for key, record in records}
            store.publish([store.new_segment(TEACHER, column_names(), blocks)])
    return path


def one_each(numbers):
    return [numbered([number]) for number in numbers]


def copied(source, target, **settings):
    with closing(open_store(target)) as publisher:
        return copy(StoreReader(source), publisher, **{"segment_bytes": SEGMENT_BYTES} | settings)


def compacting(path, before, segment_bytes=SEGMENT_BYTES):
    """A progress that compacts the store and collects what is left, before the segment of that number is copied."""

    def progress(entries):
        for number, entry in enumerate(entries):
            if number == before:
                with closing(open_store(path)) as other:
                    compact(other, segment_bytes=segment_bytes)
                    collect(other, grace_seconds=0.0)
            yield entry

    return progress


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("segment_bytes", [1, SEGMENT_BYTES])
def test_a_source_that_is_compacted_and_collected_meanwhile_is_copied_whole(tmp_path, before, segment_bytes):
    source, target = made(tmp_path / "source", *one_each(range(8))), made(tmp_path / "target")
    done = copied(source, target, progress=compacting(source, before), segment_bytes=segment_bytes)
    assert done == CopyCounts(copied=8, present=0, damaged=0)
    found = StoreReader(target).get([key_of(number) for number in range(8)])
    assert [bits(record) for record in found] == [bits(record_of(number)) for number in range(8)]


def test_of_two_values_of_a_key_the_one_that_counts_arrives_also_when_its_segment_is_compacted_meanwhile(tmp_path):
    large = [(key_of(1), record_of(1, variant=1)), *numbered(range(100, 200))]
    source = made(tmp_path / "source", numbered([1]), large, numbered([2]))
    target = made(tmp_path / "target")
    size = max(entry.bytes for entry in StoreReader(source).catalog.segments.values())
    copied(source, target, progress=compacting(source, 0, segment_bytes=2 * size))
    assert len(StoreReader(source).catalog.segments) == 2, "the large one stays"
    for store in (source, target):
        assert bits(*StoreReader(store).get([key_of(1)])) == bits(record_of(1))


def test_blocks_count_as_present_when_the_target_had_them_before(tmp_path):
    source = made(tmp_path / "source", *one_each(range(6)), numbered([5]))  # of two writers at once
    target = made(tmp_path / "target", numbered(range(2)))
    assert copied(source, target, segment_bytes=1) == CopyCounts(copied=4, present=2, damaged=0)
    assert copied(source, target, segment_bytes=1) == CopyCounts(copied=0, present=7, damaged=0)


@pytest.mark.parametrize(
    "there, mantissa_bits, kept",
    [([], 23, [CERTIFICATE]), ([numbered([9])], 23, []), ([], 10, [])],
    ids=["into an empty store", "beside other values", "rounded"],
)
def test_certificates_come_along_where_the_values_are_the_source_s_to_the_bit(tmp_path, there, mantissa_bits, kept):
    source = made(tmp_path / "source", numbered(range(3)))
    write_certificate(StoreReader(source).files, CERTIFICATE)
    target = made(tmp_path / "target", *there, mantissa_bits=mantissa_bits)
    copied(source, target)
    assert StoreReader(target).certificates() == kept
    copied(source, target)
    assert StoreReader(target).certificates() == kept


def test_values_whose_teacher_s_provenance_is_damaged_are_copied_by_its_id(tmp_path):
    source, target = made(tmp_path / "source", numbered(range(3))), made(tmp_path / "target")
    (source / "teachers").mkdir()
    (source / "teachers" / f"{TEACHER}.json").write_text("{}")
    assert copied(source, target, teacher=TEACHER).copied == 3
