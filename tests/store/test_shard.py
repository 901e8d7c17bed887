"""A shard reads what zarr reads, and says when bytes are not those that were written."""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stored_records import MEMORY, flip

from tvkd_shared.record import column_names
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.folder import Folder
from tvkd_shared.store.segment import ARRAYS, Segment, new_segment

CHUNK = 4096
BASE = column_names()
numbers = count()


@pytest.fixture(scope="module")
def folder():
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def made(records, states, columns=BASE):
    """A segment of `records` blocks with `states` rows together."""
    random = np.random.default_rng([records, states])
    rows = random.normal(20, 5, (states, len(columns))).astype(np.float32)
    stops = [2 * record for record in range(1, records)]
    blocks = np.split(rows, stops)
    keys = [random.bytes(16) for _ in range(records)]
    return new_segment("segment", "t", columns, dict(zip(keys, blocks, strict=True)), mantissa_bits=23)


def on_disk(folder, segment):
    files = Folder(folder / str(next(numbers)))
    files.write({f"segments/segment/{name}": content for name, content in segment.contents.items()})
    return files


@given(records=st.integers(1, 3 * CHUNK + 2), more=st.integers(0, 3 * CHUNK), cuts=st.data())
@example(records=CHUNK, more=0, cuts=None)
@example(records=1, more=CHUNK - 2, cuts=None)
@example(records=CHUNK - 1, more=2, cuts=None)
@example(records=2 * CHUNK, more=2 * CHUNK, cuts=None)
@settings(max_examples=25, deadline=None)
def test_any_rows_are_those_that_zarr_reads(folder, records, more, cuts):
    written = made(records, 2 * records + more, ("value_0.5",) if records % 2 else BASE)
    files = on_disk(folder, written)
    segment = Segment(files, written.entry, ChunkCache(1 << 20))
    group = zarr.open_group(files.root / "segments" / "segment", mode="r")
    for name, read in zip(ARRAYS, (segment.values, segment.offsets, segment.keys), strict=True):
        expected = group[name][:]
        assert read().dtype == expected.dtype and read().shape == expected.shape
        assert read().tobytes() == expected.tobytes()
        if cuts is not None:
            start = cuts.draw(st.integers(0, len(expected) - 1))
            stop = cuts.draw(st.integers(start + 1, len(expected)))
            shard = segment._shards[name]
            assert shard.rows(start, stop).tobytes() == expected[start:stop].tobytes()


@pytest.mark.parametrize("array", ["values/c/0/0", "offsets/c/0", "keys/c/0/0"])
def test_a_flipped_byte_of_a_shard_is_never_read(folder, array):
    segment = made(3000, 9000)
    files = on_disk(folder, segment)
    file = files.root / "segments" / "segment" / array
    rows = segment.arrays[array.partition("/")[0]]
    size = file.stat().st_size
    for position in {*range(0, size, size // 60), *range(size - 40, size)}:
        flip(file, position)
        shard = Segment(files, segment.entry, ChunkCache(0))._shards[array.partition("/")[0]]
        damaged = 0
        for start in range(0, len(rows), CHUNK):
            try:
                assert shard.rows(start, start + 1).tobytes() == rows[start : start + 1].tobytes()
            except Damaged:
                damaged += 1
        assert damaged, position
        flip(file, position)


@pytest.mark.parametrize("records, states", [(5, 20), (3000, 90_000)])
def test_a_shard_cut_short_is_damage(folder, records, states):
    segment = made(records, states)
    files = on_disk(folder, segment)
    file = files.root / "segments" / "segment" / "values" / "c" / "0" / "0"
    content = file.read_bytes()
    for size in (0, 3, 19, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(Damaged, match="does not match its checksum"):
            Segment(files, segment.entry, ChunkCache(0)).values()
