"""A key that two writers stored reads as the first one's value, whatever is merged, collected or damaged meanwhile."""

import shutil
import threading
from contextlib import closing

import pytest
from stored_records import TEACHER, bits, flip, key_of, numbered, record_of

from tvkd_server.store import LocalStore
from tvkd_server.store.compact import compact
from tvkd_server.store.gc import collect
from tvkd_server.store.publisher import Publisher
from tvkd_server.store.segment import new_segment
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader
from tvkd_shared.store.block import BASE, blocks
from tvkd_shared.store.segment import Segment

KEY = key_of(5)
FIRST = bits(record_of(5))


def segment(store, numbers, variant=0):
    """Base blocks as another writer of object storage makes them, also of keys that are there."""
    of_key = {key_of(n): dict(blocks(record_of(n, variant=variant)))[BASE] for n in numbers}
    return new_segment(store.new_name(), TEACHER, BASE, of_key, mantissa_bits=23)


@pytest.fixture
def twice(tmp_path):
    """Key 5 in a small segment, and later, with another value, in a large one; a second small one is to be merged."""
    LocalStore(tmp_path).close()
    with closing(Publisher(tmp_path)) as store:
        for numbers, variant in (([5], 0), ([6], 0), ([*range(100, 400), 5], 1)):
            store.publish([segment(store, numbers, variant)])
        store.large = max(entry.bytes for entry in store.catalog.segments.values())
        yield store


def read(source):
    return bits(source.get([KEY])[0])


def test_also_by_a_reader_that_takes_in_the_merge_at_that_moment(twice, monkeypatch):
    reader = StoreReader(twice.place)
    taking_in, may_go_on = threading.Event(), threading.Event()
    keys = Segment.keys

    def slow(self):
        if threading.current_thread() is refreshing:
            taking_in.set()
            may_go_on.wait(10)
        return keys(self)

    refreshing = threading.Thread(target=reader.refresh)
    compact(twice, segment_bytes=twice.large)
    monkeypatch.setattr(Segment, "keys", slow)
    refreshing.start()
    assert taking_in.wait(10)
    seen = read(reader)
    may_go_on.set()
    refreshing.join()
    assert seen == read(reader) == FIRST


def test_also_by_a_reader_that_could_not_take_in_the_merge(twice, monkeypatch):
    reader = StoreReader(twice.place)
    compact(twice, segment_bytes=twice.large)

    def fails(self):
        raise StoreUnavailable("the service is down")

    with monkeypatch.context() as service, pytest.raises(StoreUnavailable):
        service.setattr(Segment, "keys", fails)
        reader.refresh()
    assert read(reader) == FIRST


def test_also_by_a_reader_whose_segments_were_collected(twice):
    reader = StoreReader(twice.place)
    compact(twice, segment_bytes=twice.large)
    collect(twice, grace_seconds=0.0)
    assert [read(reader) for _ in range(2)] == [FIRST, FIRST]
    assert reader.counts().corrupt == 0


def test_files_that_are_lost_are_damage_and_the_later_value_is_better_than_none(twice):
    first = min(twice.catalog.segments.values(), key=lambda entry: entry.order)
    shutil.rmtree(twice.files.root / "segments" / first.name)
    reader = StoreReader(twice.place)
    assert read(reader) == bits(record_of(5, variant=1))
    assert reader.counts().corrupt > 0


def test_a_segment_that_nobody_committed_to_is_not_relied_on_when_another_commit_is_damaged(tmp_path):
    """Its writer may die before it commits, and then it is collected: an acknowledged value would go with it."""
    with closing(LocalStore(tmp_path)) as store:
        store.put(TEACHER, numbered([1]))
    with closing(Publisher(tmp_path)) as other:
        orphan = segment(other, [5])
        flip(tmp_path / "commits" / "000000000001.json", 40)
        with closing(LocalStore(tmp_path)) as store:
            other.files.write({f"segments/{orphan.entry.name}/{name}": c for name, c in orphan.contents.items()})
            store.put(TEACHER, numbered([2]))
            store.seal()
            assert store.get([KEY]) == [None]
            store.put(TEACHER, numbered([5]))
        shutil.rmtree(tmp_path / "segments" / orphan.entry.name)
    assert [bits(one) for one in StoreReader(tmp_path).get([key_of(n) for n in (1, 2, 5)])] == [
        bits(record_of(n)) for n in (1, 2, 5)
    ]


def test_a_compaction_commits_to_what_a_damaged_commit_named_before_it_merges_it(tmp_path):
    """Else what it made would count after every value that comes later."""
    LocalStore(tmp_path).close()
    with closing(Publisher(tmp_path)) as other, closing(Publisher(tmp_path)) as store:
        other.publish([segment(other, [5]), segment(other, [6])])
        flip(tmp_path / "commits" / "000000000001.json", 40)
        compact(store)
        assert {entry.order for entry in store.catalog.segments.values()} == {2}
    assert read(StoreReader(tmp_path)) == FIRST
