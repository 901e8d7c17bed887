"""The index finds every key of every segment that was added and not dropped, and nothing else."""

import tracemalloc
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stored_records import MEMORY, flip, key_of

from tvkd_shared.store.index import Index

KEYS = [key_of(number) for number in range(12)] + [key_of(0)[:8] + bytes(8)]  # the last begins as the first does


def rows(keys):
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)


def random_keys(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8)


def places_of(index, keys):
    """The segment and row of every block that each key may have."""
    hits = index.find(keys)
    return [[(name, row) for name, of in hits.items() for which, row in of if which == n] for n in range(len(keys))]


class IndexIsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name, "deeper", "index")
        self.index, self.saved = Index(), None
        self.segments: dict[str, list[bytes]] = {}
        self.added = 0

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=8, unique=True))
    def add(self, keys):
        self.added += 1
        self.index.add(f"segment-{self.added}", rows(keys))
        self.segments[f"segment-{self.added}"] = keys

    @rule(numbers=st.sets(st.integers(1, 8)))
    def drop(self, numbers):
        names = {f"segment-{number}" for number in numbers}
        self.index.drop(names)
        self.segments = {name: keys for name, keys in self.segments.items() if name not in names}

    @rule()
    def save(self):
        self.index.save(self.path)
        self.saved = dict(self.segments)

    @rule()
    def load(self):
        loaded = Index.load(self.path)
        assert (loaded is None) == (self.saved is None)
        if loaded is not None:
            self.index, self.segments = loaded, dict(self.saved)

    @invariant()
    def finds_what_the_dict_has(self):
        expected = defaultdict(set)
        for name, keys in self.segments.items():
            for row, key in enumerate(keys):
                expected[key[:8]].add((name, row))
        assert [sorted(places) for places in places_of(self.index, KEYS)] == [sorted(expected[key[:8]]) for key in KEYS]
        assert self.index.names == self.segments.keys()
        assert len(self.index) == sum(map(len, self.segments.values()))

    def teardown(self):
        self.folder.cleanup()


IndexIsADict.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestIndexIsADict = IndexIsADict.TestCase


@pytest.fixture
def saved(tmp_path):
    index = Index()
    for name, first in (("one", 0), ("two", 20)):
        index.add(name, rows([key_of(number) for number in range(first, first + 20)]))
    index.save(tmp_path / "index")
    return tmp_path / "index"


def test_a_flipped_byte_anywhere_in_its_file_makes_it_none(saved):
    for position in range(saved.stat().st_size):
        flip(saved, position)
        assert Index.load(saved) is None, position
        flip(saved, position)
    assert places_of(Index.load(saved), [key_of(25)]) == [[("two", 5)]]


def test_a_file_cut_short_or_longer_or_missing_makes_it_none(saved):
    content = saved.read_bytes()
    for damaged in (*(content[:size] for size in range(0, len(content), 7)), content + bytes(16), b"[]", bytes(64)):
        saved.write_bytes(damaged)
        assert Index.load(saved) is None, len(damaged)
    assert Index.load(saved.parent) is None and Index.load(saved.parent / "nothing") is None


def test_a_save_that_fails_leaves_the_file_that_was_there_and_no_other(saved, monkeypatch):
    before = saved.read_bytes()
    index = Index()
    index.add("three", random_keys(5))

    def fails(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="Input/output"):
        disk.setattr("os.fsync", fails)
        index.save(saved)
    assert saved.read_bytes() == before and [file.name for file in saved.parent.iterdir()] == ["index"]


def test_what_is_loaded_stays_readable_when_its_file_is_replaced(saved):
    loaded = Index.load(saved)
    Index().save(saved)
    assert places_of(loaded, [key_of(25)]) == [[("two", 5)]]


def test_a_key_takes_less_than_40_bytes_in_memory_and_on_disk(tmp_path):
    keys = random_keys(200_000)
    tracemalloc.start()
    try:
        index = Index()
        for number, some in enumerate(np.array_split(keys, 100)):
            index.add(f"segment-{number}", some)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.save(tmp_path / "index")
    assert held < 40 * len(keys)
    assert (tmp_path / "index").stat().st_size < 20 * len(keys)


@pytest.mark.parametrize("sizes", [[10] * 3000, [3000, *[1] * 3000], list(range(1, 300))])
def test_however_segments_come_the_runs_stay_few(sizes):
    index = Index()
    keys = random_keys(max(sizes))
    for number, size in enumerate(sizes):
        index.add(f"segment-{number}", keys[:size])
        assert len(index._state[1]) <= 2 + np.log2(len(index))
    assert len(index) == sum(sizes)
