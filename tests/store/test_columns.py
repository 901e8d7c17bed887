"""A stored column can be added: it is declared in `record.COLUMNS`, and nothing of the store changes."""

from contextlib import closing

import numpy as np
import pytest
from stored_records import TEACHER, bits, key_of, numbered, record_of

from tvkd_shared import record
from tvkd_shared.record import Column, Record, column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import compact
from tvkd_shared.store.verify import verify

KEYS = [key_of(n) for n in range(6)]
MARGIN = Column("margin", "margins", last_state=False)


def with_margin(number):
    """The record of a number with one more column."""
    old = record_of(number)
    margin_S = np.append(np.arange(old.length, dtype=np.float32), np.float32(np.nan))
    return Record(column_names(), np.column_stack([old.numbers, margin_S]))


@pytest.fixture(params=["recent", "sealed", "compacted"])
def old_store(request, tmp_path):
    """A store that was filled before the column was declared."""
    with closing(open_store(tmp_path)) as store:
        for numbers in ([0, 1], [2, 3]):
            store.put(TEACHER, numbered(numbers))
            if request.param != "recent":
                store.seal()
        if request.param == "compacted":
            compact(store)
        yield store


def test_a_column_that_is_declared_later_is_stored_and_read_beside_the_old_ones(old_store, monkeypatch):
    before = column_names()
    monkeypatch.setattr(record, "COLUMNS", (*record.COLUMNS, MARGIN))
    assert old_store.get(KEYS[:4]) == [None] * 4, "the old blocks lack it"
    assert [bits(one) for one in old_store.get(KEYS[:4], before)] == [bits(record_of(n)) for n in range(4)]
    stored = old_store.put(TEACHER, [(key_of(n), with_margin(n)) for n in range(6)])
    expected = [bits(with_margin(n)) for n in range(6)]
    assert [bits(one) for one in stored] == expected
    for _ in range(2):
        with closing(StoreReader(old_store.place)) as reader:
            assert [bits(one) for one in reader.get(KEYS)] == expected
            assert [bits(one) for one in reader.get(KEYS, ["margin"])] == [{"margin": e["margin"]} for e in expected]
            assert reader.counts().sequences == 6
            assert verify(reader) == []
        old_store.seal()
        compact(old_store)


def test_a_column_that_this_version_does_not_know_is_kept_and_ignored(tmp_path, monkeypatch):
    with monkeypatch.context() as later, closing(open_store(tmp_path)) as store:
        later.setattr(record, "COLUMNS", (*record.COLUMNS, MARGIN))
        for n in range(6):
            store.put(TEACHER, [(key_of(n), with_margin(n))])
            store.seal()
    with closing(open_store(tmp_path)) as store:
        assert [bits(one) for one in store.get(KEYS)] == [bits(record_of(n)) for n in range(6)]
        assert compact(store).segments_after == 1 and verify(store) == []
    monkeypatch.setattr(record, "COLUMNS", (*record.COLUMNS, MARGIN))
    with closing(StoreReader(tmp_path)) as reader:
        assert [bits(one) for one in reader.get(KEYS)] == [bits(with_margin(n)) for n in range(6)]


def test_of_a_column_in_two_blocks_the_first_durable_one_counts_and_the_others_are_added(tmp_path):
    with closing(open_store(tmp_path)) as store:
        for temperatures, variant in (((0.5,), 0), ((2.0,), 1), ((0.5, 2.0, 3.0), 2)):
            store.put(TEACHER, [(key_of(1), record_of(1, temperatures, variant))])
            store.seal()
        expected = bits(record_of(1, (0.5, 2.0, 3.0), 2)) | bits(record_of(1, (2.0,), 1)) | bits(record_of(1, (0.5,)))
        for _ in range(2):
            (found,) = store.get([key_of(1)], column_names([0.5, 2.0, 3.0]))
            assert bits(found) == expected
            compact(store)
        assert store.get([key_of(2)], column_names([3.0])) == [None]
        assert store.get([key_of(1)], column_names([4.0])) == [None]


def test_a_completion_of_another_length_than_its_key_has_is_refused(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1]))
        with pytest.raises(ValueError, match="has another number of states in the store"):
            store.put(TEACHER, [(key_of(1), record_of(2, (0.5,)))])


def test_a_look_up_that_hits_looks_once_and_one_that_misses_looks_twice(tmp_path, monkeypatch):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered(range(4)))
        store.seal()
        looks, refreshes = [], []
        look, refresh = StoreReader._look, StoreReader.refresh
        monkeypatch.setattr(StoreReader, "_look", lambda *a: (looks.append(1), look(*a))[1])
        monkeypatch.setattr(StoreReader, "refresh", lambda *a: (refreshes.append(1), refresh(*a))[1])
        store.get(KEYS[:4])
        assert (len(looks), len(refreshes)) == (1, 0)
        store.get(KEYS)
        assert (len(looks), len(refreshes)) == (3, 1)
