"""Fewer mantissa bits: the error is bounded and said, and what is stored is what is served."""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stored_records import TEACHER, as_killed, bits, found_in, key_of, numbered, record_of

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.block import rounded
from tvkd_shared.store.format import Format

TINY = np.finfo(np.float32).tiny
finite = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
mantissa_bits = st.integers(0, 23)


@given(numbers=finite, kept=mantissa_bits)
@example(numbers=[3.4028235e38, -3.4028235e38], kept=10)
def test_rounding_is_off_by_half_of_the_last_kept_bit_at_most(numbers, kept):
    exact = np.array(numbers, np.float32).astype(np.float64)
    near = rounded(exact.astype(np.float32), kept)
    normal = (np.abs(exact) >= TINY) & (np.abs(exact) < 2.0**127 * (2 - 2.0 ** -(kept + 1)))
    error = np.abs(near - exact)[normal]
    assert (error <= 2.0 ** -(kept + 1) * np.abs(exact)[normal]).all()
    assert error.max(initial=0) == 0 or Format(kept).relative_error > 0
    assert np.isfinite(near).all() and (np.signbit(near) == np.signbit(exact)).all()


@given(numbers=finite, kept=mantissa_bits)
def test_rounding_again_changes_nothing_and_the_dropped_bits_are_zero(numbers, kept):
    once = rounded(np.array(numbers, np.float32), kept)
    assert rounded(once, kept).tobytes() == once.tobytes()
    assert not (once.view(np.uint32) & np.uint32((1 << 23 - kept) - 1)).any()


@given(kept=mantissa_bits)
def test_nan_and_infinity_stay_what_they_are(kept):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    assert rounded(special, kept).tobytes() == special.tobytes()


def test_ties_go_to_even():
    assert rounded(np.array([1.0, 1.25, 1.5, 1.75], np.float32), 1).tolist() == [1.0, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("kept", [7, 16])
def test_what_is_stored_is_what_is_served_and_what_is_read_after(tmp_path, kept):
    def read(source):
        return found_in(source, [key_of(n) for n in range(20)], [0.5])

    with closing(open_store(tmp_path / "live", mantissa_bits=kept)) as store:
        store.put(TEACHER, numbered(range(20), (0.5,)))
        served = read(store)
        for name, row in bits(record_of(3, (0.5,))).items():
            assert served[3][name] == rounded(np.frombuffer(row, np.float32), kept).tobytes()
        assert served != [bits(record_of(n, (0.5,))) for n in range(20)]
        killed = as_killed(tmp_path / "live", tmp_path / "killed")
        store.seal()
        assert read(store) == served
    for path in (killed, tmp_path / "live"):
        with closing(open_store(path)) as store, closing(StoreReader(path)) as reader:
            store.put(TEACHER, numbered(range(20), (0.5,)))
            assert read(store) == read(reader) == served
            assert store.format == reader.format == Format(kept)


def test_another_precision_than_the_store_has_is_refused(tmp_path):
    open_store(tmp_path, mantissa_bits=10).close()
    with pytest.raises(InvalidRequest, match="keeps 10 mantissa bits, not 12; leave the flag out"):
        open_store(tmp_path, mantissa_bits=12)
    for same in (None, 10):
        open_store(tmp_path, mantissa_bits=same).close()


def test_fewer_bits_take_fewer_bytes(tmp_path):
    sizes = []
    for kept in (23, 10):
        with closing(open_store(tmp_path / str(kept), mantissa_bits=kept)) as store:
            store.put(TEACHER, numbered(range(500)))
            store.seal()
            sizes.append(sum(entry.bytes for entry in store.catalog.segments.values()))
    assert sizes[1] < 0.75 * sizes[0]
