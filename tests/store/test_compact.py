"""Compaction and collection: fewer files, the same values, for readers and writers that are there meanwhile."""

import os
import threading
import time
from contextlib import closing

import pytest
from stored_records import TEACHER, bits, flip, found_in, key_of, numbered, record_of

from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import compact, plan
from tvkd_shared.store.gc import collect
from tvkd_shared.store.segment import SegmentEntry, new_segment

KEYS = [key_of(n) for n in range(60)]
RIGHT = [bits(record_of(n, (0.5,))) for n in range(60)]


def filled(path, segments=12):
    with closing(open_store(path)) as store:
        for first in range(0, 60, 60 // segments):
            store.put(TEACHER, numbered(range(first, first + 60 // segments), (0.5,)))
            store.seal()
    return path


def read(source):
    return found_in(source, KEYS, [0.5])


def entry(name, size, order, teacher="t", columns=("value_1",)):
    return SegmentEntry(
        name=name, teacher=teacher, columns=columns, records=1, states=2, bytes=size, metadata_crc32=0,
        order=order,
    )  # fmt: skip


def test_small_segments_of_one_teacher_and_column_list_are_grouped_in_their_order():
    entries = [entry("a", 40, 3), entry("b", 40, 1), entry("c", 30, 2), entry("big", 60, 0), entry("d", 10, 4, "u")]
    entries += [entry("e", 10, 5, columns=("value_0.5",)), entry("f", 10, 6, columns=("value_0.5",))]
    assert [[one.name for one in group] for group in plan(entries, 100)] == [["b", "c"], ["e", "f"]]
    assert [[one.name for one in group] for group in plan(entries, 1000)] == [["big", "b", "c", "a"], ["e", "f"]]


def test_compaction_leaves_every_value_and_count_as_it_was_and_few_files(tmp_path):
    path = filled(tmp_path / "values")
    with closing(StoreReader(path)) as before, closing(open_store(path)) as store:
        counts = before.counts()
        done = compact(store)
        assert (done.segments_before, done.segments_after, done.damaged) == (12, 1, 0)
        assert done.bytes_after < done.bytes_before / 3
        for source in (before, store, StoreReader(path)):
            assert read(source) == RIGHT
            assert source.counts().sequences == counts.sequences == 60
            assert (source.counts().tokens, source.counts().corrupt) == (counts.tokens, 0)
        assert compact(store).segments_before == 0


def test_a_reader_that_knows_only_the_old_segments_reads_on_after_they_are_collected(tmp_path):
    path = filled(tmp_path / "values")
    with closing(StoreReader(path)) as reader, closing(open_store(path)) as store:
        compact(store)
        assert collect(store).files == 0  # a day of grace
        removed = collect(store, grace_seconds=0.0)
        assert removed.files >= 12 * 7 and len(list((path / "segments").iterdir())) == 1
        assert read(reader) == RIGHT
        assert (reader.counts().sequences, reader.counts().corrupt) == (60, 0)


def test_a_live_writer_and_readers_go_on_while_another_process_s_compaction_runs(tmp_path):
    with closing(open_store(tmp_path / "values", seal_bytes=1000)) as store:
        finished = threading.Event()
        wrong = []

        def compact_and_collect():
            with closing(open_store(tmp_path / "values")) as other:
                while not finished.is_set():
                    compact(other)
                    collect(other, grace_seconds=0.0)

        def read_back():
            with closing(StoreReader(tmp_path / "values")) as reader:
                while not finished.is_set():
                    numbers = list(range(len(put)))
                    found = reader.get([key_of(n) for n in numbers])
                    wrong.extend(n for n, one in zip(numbers, found, strict=True) if bits(one) != bits(record_of(n)))

        put: list[int] = []
        threads = [threading.Thread(target=work) for work in (compact_and_collect, read_back)]
        for thread in threads:
            thread.start()
        for n in range(300):
            store.put(TEACHER, numbered([n]))
            put.append(n)
        finished.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert found_in(store, [key_of(n) for n in range(300)]) == [bits(record_of(n)) for n in range(300)]
        assert store.counts().sequences == 300


def publish_again(store, numbers, variant):
    """Another writer's copy of keys that are there: only object storage has such, made here by hand."""
    blocks = {key_of(n): record_of(n, variant=variant).numbers for n in numbers}
    store.publish([store.new_segment(TEACHER, column_names(), blocks)])


@pytest.mark.parametrize("merged", ["the first", "the later", "both"])
def test_of_two_values_of_a_key_the_first_stays_whichever_is_merged(tmp_path, merged):
    with closing(open_store(tmp_path)) as store:
        large = range(100, 400)
        first, later = ([5], [*large, 5]) if merged == "the first" else ([*large, 5], [5])
        store.put(TEACHER, numbered([1] if merged == "the first" else [1000]))
        store.seal()
        publish_again(store, first, variant=0)
        publish_again(store, later, variant=1)
        publish_again(store, [6], variant=0)
        sizes = sorted(entry.bytes for entry in store.catalog.segments.values())
        before = bits(store.get([key_of(5)])[0])
        counts = store.counts()
        compact(store, segment_bytes=1 << 28 if merged == "both" else sizes[-1])
        assert bits(store.get([key_of(5)])[0]) == before == bits(record_of(5))
        assert (store.counts().sequences, store.counts().tokens) == (counts.sequences, counts.tokens)
        compact(store)
        assert bits(store.get([key_of(5)])[0]) == before
        assert len(store.catalog.segments) == 1 and store.counts().sequences == counts.sequences


def test_damaged_blocks_are_left_out_and_a_sound_later_copy_is_kept(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1, 2]))
        store.seal()
        (damaged,) = (tmp_path / "segments").glob("*/values/c/0/0")
        flip(damaged, 30)
    with closing(open_store(tmp_path)) as store:
        assert store.get([key_of(1)]) == [None]
        store.put(TEACHER, numbered([1]))
        store.seal()
        assert compact(store).damaged == 2
        assert found_in(store, [key_of(1), key_of(2)]) == [bits(record_of(1)), None]


def test_two_compactions_at_once_publish_one_result(tmp_path):
    path = filled(tmp_path / "values")
    with closing(open_store(path)) as one, closing(open_store(path)) as other:
        other.refresh()
        groups = []
        compact(one, progress=lambda planned: (groups.append(planned), compact(other))[0] or planned)
        assert groups[0] and sum(one.catalog.segments[name].sequences for name in one.catalog.segments) == 60
        assert read(one) == read(other) == read(StoreReader(path)) == RIGHT


def test_leftovers_of_crashes_are_collected_after_the_grace_and_live_files_never(tmp_path):
    path = filled(tmp_path / "values", segments=1)
    with closing(open_store(path)) as store:
        orphan = new_segment("orphan", TEACHER, column_names(), {key_of(99): record_of(99).numbers}, mantissa_bits=23)
        store.files.write({f"segments/{orphan.entry.name}/{name}": c for name, c in orphan.contents.items()})
        (path / "commits" / f".000000000009.json.{32 * 'a'}").write_bytes(b"half")
        assert collect(store, grace_seconds=0.0).files == 0  # a live writer may be about to commit to it
        age(path)
        assert collect(store, grace_seconds=7200.0).files == 0
        assert collect(store, grace_seconds=0.0).files == len(orphan.contents) + 1
        assert read(store) == RIGHT and len(list((path / "segments").iterdir())) == 1


def age(path, seconds=4000):
    for file in path.rglob("*"):
        os.utime(file, (time.time() - seconds,) * 2)


def test_openings_start_at_a_checkpoint_and_a_reader_that_fell_behind_catches_up(tmp_path):
    path = filled(tmp_path / "values")
    with closing(StoreReader(path)) as behind, closing(open_store(path)) as store:
        for _ in range(3):
            compact(store)
            age(path)
            collect(store, grace_seconds=0.0)
            publish_again(store, [70], variant=0)
        assert "000000000001.json" not in {file.name for file in (path / "commits").iterdir()}
        for source in (behind, StoreReader(path)):
            assert read(source) == RIGHT
            assert bits(source.get([key_of(70)])[0]) == bits(record_of(70))
            assert source.counts().corrupt == 0
