"""A key that two writers stored reads as the first one's value, whatever is merged, collected or damaged meanwhile."""

import shutil
import threading
from contextlib import closing

import pytest
from stored_records import TEACHER, bits, key_of, record_of

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import compact
from tvkd_shared.store.gc import collect
from tvkd_shared.store.segment import Segment

KEY = key_of(5)
FIRST = bits(record_of(5))


def segment(store, numbers, variant=0):
    """Base blocks as another writer of object storage makes them, also of keys that are there."""
    of_key = {key_of(n): record_of(n, variant=variant).numbers for n in numbers}
    return store.new_segment(TEACHER, column_names(), of_key)


@pytest.fixture
def twice(tmp_path):
    """Key 5 in a small segment, and later, with another value, in a large one; a second small one is to be merged."""
    open_store(tmp_path).close()
    with closing(open_store(tmp_path)) as store:
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
