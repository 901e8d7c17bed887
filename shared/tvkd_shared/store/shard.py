"""A Zarr array that is one shard, read without zarr: one range of bytes a chunk, where zarr needs a millisecond.

The layout is Zarr v3's sharding: inner chunks, each (transpose →) bytes → blosc → crc32c, then (offset, length) of each
chunk as uint64, little-endian, then CRC-32C over those. The tests read the same arrays with zarr.
"""

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import decompress

from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache, SharedFailureLock
from tvkd_shared.store.files import Files

CHUNK_ROWS = 4096
_CRC_BYTES = 4
_TAIL_BYTES = 1 << 16
"""Read at once from the end of a shard: the index, and all of a small shard."""


class Shard:
    """Rows of one array, in chunks of CHUNK_ROWS. Every method raises Damaged when bytes fail a check.

    Other errors are those of `Files`, FileNotFoundError among them.
    """

    def __init__(
        self, files: Files, name: str, rows: int, like: npt.NDArray[Any], cache: ChunkCache, *, by_column: bool = False
    ) -> None:
        """`like` has the dtype of the array and the shape of a row, after an axis of its own.

        by_column  a chunk's columns were written one after the other: alike numbers beside each other pack better
        """
        self._files = files
        self._name = name
        self._rows = rows
        self._like = like
        self._cache = cache
        self._by_column = by_column
        self._opening = SharedFailureLock()
        self._opened: npt.NDArray[np.int64] | None = None

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start … stop − 1, read-only; 0 ≤ start < stop ≤ rows."""
        first = start // CHUNK_ROWS
        rows = self._chunk(first)
        if stop > (first + 1) * CHUNK_ROWS:
            more = [self._chunk(number) for number in range(first + 1, (stop - 1) // CHUNK_ROWS + 1)]
            rows = np.concatenate([rows, *more])
        return rows[start - first * CHUNK_ROWS : stop - first * CHUNK_ROWS]

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        return self._cache.get((self._name, number), lambda: self._decoded(number))

    def prime(self, rows: npt.NDArray[Any]) -> None:
        """Put rows that were just written where those that were just read are."""
        for number in range(-(-len(rows) // CHUNK_ROWS)):
            chunk = rows[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS]
            self._cache.get((self._name, number), chunk.copy)

    def _decoded(self, number: int) -> npt.NDArray[Any]:
        index, tail = self._index()
        offset, length = index[number].tolist()
        content = tail[offset : offset + length] or self._files.read(self._name, offset, offset + length)
        checked, crc = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
        self._check(len(content) == length and google_crc32c.value(checked) == int.from_bytes(crc, "little"))
        numbers = np.frombuffer(decompress(checked), self._like.dtype)
        if self._by_column:
            chunk = np.ascontiguousarray(numbers.reshape(-1, CHUNK_ROWS).T)
        else:
            chunk = numbers.reshape(CHUNK_ROWS, *self._like.shape[1:])
        rows = self._rows - number * CHUNK_ROWS
        return chunk[:rows] if rows >= CHUNK_ROWS else chunk[:rows].copy()  # a view would keep the padding alive

    def _index(self) -> tuple[npt.NDArray[np.int64], bytes]:
        """(offset, length) of each chunk, and the whole shard where it is small and was read just now, else nothing."""
        with self._opening:
            if self._opened is None:
                chunks = -(-self._rows // CHUNK_ROWS)
                size = 16 * chunks
                tail = self._files.read(self._name, -max(_TAIL_BYTES, size + _CRC_BYTES))
                index, crc = tail[-size - _CRC_BYTES : -_CRC_BYTES], tail[-_CRC_BYTES:]
                self._check(len(index) == size and google_crc32c.value(index) == int.from_bytes(crc, "little"))
                places = np.frombuffer(index, "<i8").reshape(chunks, 2)
                ends = places.sum(1)
                # A chunk that was left out has the largest number for both; none is here.
                self._check(bool((places >= 0).all()) and bool((places[:, 1] > _CRC_BYTES).all()))
                whole = len(tail) == int(ends.max()) + size + _CRC_BYTES
                self._opened = places.astype(np.int64)
                return self._opened, tail if whole else b""
            return self._opened, b""

    def _check(self, sound: bool) -> None:
        if not sound:
            raise Damaged(f"{self._name} does not match its checksum")
