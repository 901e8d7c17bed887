"""A segment: an immutable Zarr v3 group of blocks that share one column list.

    values   (states, columns) float32   the blocks, one after the other
    offsets  (records + 1,)    int64     rows offsets[r] … offsets[r + 1] of `values` are record r
    keys     (records, 16)     uint8

Each array is one shard of inner chunks of 4096 rows, blosc lz4 bitshuffle, then crc32c: blosc alone serves a flipped
byte silently. zarr answers a missing shard with the fill value, so the fill values are no values: NaN, and offset −1.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.scored import Float32
from tvkd_shared.store.block import BASE, Damaged, check, columns
from tvkd_shared.store.cache import ChunkCache

FORMAT_NAME = "tvkd-store"
FORMAT_VERSION = 1
CHUNK_ROWS = 4096
ARRAYS = ("values", "offsets", "keys")
CHECKSUM = "metadata_crc32"


def segment_path(store: Path, number: int) -> Path:
    return store / "segments" / f"{number:012d}"


def attributes(temperature: float, records: int, states: int) -> dict[str, Any]:
    """What a segment says of itself, without its checksum."""
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "columns": list(columns(temperature)),
        "temperature": None if temperature == BASE else temperature,
        "records": records,
        "states": states,
    }


def metadata_checksum(segment: Path, attributes: Mapping[str, Any]) -> int:
    """CRC-32 over the attributes and each array's `zarr.json`: a flipped digit must not become another temperature."""
    said = {name: entry for name, entry in attributes.items() if name != CHECKSUM}
    crc = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for name in ARRAYS:
        crc = zlib.crc32((segment / name / "zarr.json").read_bytes(), crc)
    return crc


# What zarr's crc32c codec says; any flipped byte of a shard, or a shard of another length, ends there.
_CRC_MISMATCH = "computed checksum do not match"


@contextmanager
def zarr_faults(path: Path) -> Iterator[None]:
    """Whatever zarr raises becomes StoreUnavailable, but for a checksum that does not match: that is Damaged.

    A library that fails (a codec that is not there, no memory) says nothing of the bytes, which may be sound.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        if _CRC_MISMATCH in what:
            raise Damaged(f"{path} does not match its checksum") from error
        raise StoreUnavailable(
            f"zarr cannot use {path}: {what}; check that zarr and its codecs are installed"
        ) from error


@contextmanager
def _metadata_faults(path: Path) -> Iterator[None]:
    # A missing file is damage; any other OSError (too many open files, a failing disk) says nothing of the bytes.
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{path} is not complete") from error
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error


class Segment:
    """One segment, read a whole inner chunk at a time: zarr takes about a millisecond for any read.

    Raises Damaged, here and in each method, when bytes fail a check; OSError when the disk does;
    StoreUnavailable when zarr fails otherwise, or the segment was written in another format version.
    """

    def __init__(self, path: Path, cache: ChunkCache) -> None:
        self.path = path
        self._cache = cache
        with _metadata_faults(path):
            said = json.loads((path / "zarr.json").read_bytes())["attributes"]
            if said[CHECKSUM] != metadata_checksum(path, said):
                raise Damaged(f"{path} has metadata that do not match their checksum")
            if (said["format"], said["version"]) != (FORMAT_NAME, FORMAT_VERSION):
                raise StoreUnavailable(
                    f"{path} has format {said['format']} {said['version']}; "
                    f"this program reads {FORMAT_NAME} {FORMAT_VERSION}"
                )
            self.temperature: float = BASE if said["temperature"] is None else said["temperature"]
            self.records: int = said["records"]
            self.states: int = said["states"]
        with zarr_faults(path):
            self._arrays = {name: zarr.open_array(LocalStore(path / name, read_only=True), mode="r") for name in ARRAYS}

    def block(self, row: int, key: bytes, states: int) -> Float32:
        """The block of `states` rows that is record `row`, which must have this key. Shape (states, columns)."""
        if not 0 <= row < self.records or self._rows("keys", row, row + 1).tobytes() != key:
            raise Damaged(f"{self.path} does not hold the key in row {row}")
        start, stop = self._rows("offsets", row, row + 2).tolist()
        if not 0 <= start < stop <= self.states or stop - start != states:
            raise Damaged(f"{self.path} does not hold {states} states in row {row}")
        return check(self._rows("values", start, stop), self.temperature)

    def index(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Keys, shape (records, 16), and offsets, shape (records + 1,)."""
        with zarr_faults(self.path):
            keys, offsets = (np.asarray(self._arrays[name][...]) for name in ("keys", "offsets"))
        if (
            keys.shape != (self.records, KEY_BYTES)
            or offsets.shape != (self.records + 1,)
            or (offsets[0], offsets[-1]) != (0, self.states)
            or (np.diff(offsets) < 2).any()
        ):
            raise Damaged(f"{self.path} has offsets or keys that do not fit its number of records")
        return keys, offsets

    def values(self) -> Float32:
        """All rows, shape (states, columns)."""
        with zarr_faults(self.path):
            return np.asarray(self._arrays["values"][...], np.float32)

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        first = start // CHUNK_ROWS
        chunks = [self._chunk(name, number) for number in range(first, (stop - 1) // CHUNK_ROWS + 1)]
        rows = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return rows[start - first * CHUNK_ROWS : stop - first * CHUNK_ROWS]

    def _chunk(self, name: str, number: int) -> npt.NDArray[Any]:
        def load() -> npt.NDArray[Any]:
            with zarr_faults(self.path / name):
                return np.array(self._arrays[name][number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS])

        return self._cache.get((self.path.name, name, number), load)
