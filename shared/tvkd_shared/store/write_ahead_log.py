"""Checking SQLite's write-ahead log, whose checksums SQLite itself looks at only after a crash.

The file is a header of 32 bytes, then frames: 24 bytes and a page each (https://www.sqlite.org/fileformat2.html#walformat).
A frame belongs to the log while its two salts are those of the header; what lies behind is left from earlier use.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tvkd_shared.store.files import Files
from tvkd_shared.store.recent import WAL

UInt32 = npt.NDArray[np.uint32]
_HEADER, _FRAME_HEADER = 32, 24
_LITTLE, _BIG = 0x377F0682, 0x377F0683


def check(files: Files) -> Iterator[tuple[str, str]]:
    """What is wrong with the log, as (file, what); nothing when all its frames match their checksums."""
    try:
        content = files.read(WAL)
    except FileNotFoundError:
        return
    if not content:
        return
    magic, _, page, _, *_ = (int(n) for n in np.frombuffer(content[:_HEADER].ljust(_HEADER, b"\0"), ">u4"))
    order = "<u4" if magic == _LITTLE else ">u4"
    sums = _fold(np.zeros(2, np.uint32), np.frombuffer(content[:24].ljust(24, b"\0"), order))
    if magic not in (_LITTLE, _BIG) or sums.astype(">u4").tobytes() != content[24:_HEADER] or not page:
        yield WAL, "its header does not match its checksum"
        return
    size = _FRAME_HEADER + page
    for number, start in enumerate(range(_HEADER, len(content) - size + 1, size)):
        frame = content[start : start + size]
        checked = frame[:8] + frame[_FRAME_HEADER:]
        sums = _fold(sums, np.frombuffer(checked, order))
        if frame[8:16] != content[16:24] or sums.astype(">u4").tobytes() != frame[16:_FRAME_HEADER]:
            rest = [content[at + 8 : at + 16] for at in range(start, len(content) - size + 1, size)]
            if content[16:24] in rest:
                yield WAL, f"frame {number} does not match its checksum: damaged, or left half written by a crash"
            return


def _fold(sums: UInt32, words: UInt32) -> UInt32:
    """SQLite's checksum: for each pair of words a, b: s += a + t, then t += b + s, modulo 2^32."""
    pairs = words.astype(np.uint32).reshape(-1, 2)
    power, weights = _weights(len(pairs))
    folded: UInt32 = (power * sums).sum(1, dtype=np.uint32) + (weights * pairs).sum((1, 2), dtype=np.uint32)
    return folded


@lru_cache
def _weights(count: int) -> tuple[UInt32, UInt32]:
    """The checksum is linear: what `count` pairs make of (s, t), [2, 2], and the weight of each word, [2, count, 2]."""
    step, add = np.array([[1, 1], [1, 2]], np.uint32), np.array([[1, 0], [1, 1]], np.uint32)
    power, weights = np.eye(2, dtype=np.uint32), np.empty((2, count, 2), np.uint32)
    for pair in reversed(range(count)):
        weights[:, pair] = power @ add
        power = power @ step
    return power, weights
