"""A segment: an immutable Zarr v3 group of blocks of one teacher that share one column list.

    values   (states, columns) float32   the blocks, one after the other
    offsets  (records + 1,)    int64     rows offsets[r] … offsets[r + 1] of `values` are record r
    keys     (records, 16)     uint8

Each array is one shard; see `shard`. What is read is named by a commit; the group's own metadata are for other readers
of Zarr, and for the day when a commit is lost.
"""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32
from tvkd_shared.store import document
from tvkd_shared.store.block import BASE, Damaged, check, columns
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.entry import SEGMENTS, SegmentEntry
from tvkd_shared.store.files import Files
from tvkd_shared.store.format import FORMAT_NAME, FORMAT_VERSION, Format, check_version
from tvkd_shared.store.shard import Shard

ARRAYS = ("values", "offsets", "keys")
BY_COLUMN = "values"
"""The array whose chunks are transposed."""

METADATA = ("zarr.json", *(f"{name}/zarr.json" for name in ARRAYS))


def shard_file(array: str) -> str:
    """The file of an array's one shard: `c`, then a zero for each dimension."""
    return f"{array}/c/0" if array == "offsets" else f"{array}/c/0/0"


def attributes(entry: SegmentEntry, mantissa_bits: int) -> dict[str, Any]:
    """What a segment says of itself, with its checksum."""
    said = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "teacher": entry.teacher,
        "columns": list(columns(entry.temperature)),
        "temperature": None if entry.temperature == BASE else entry.temperature,
        "records": entry.records,
        "states": entry.states,
        "mantissa_bits": mantissa_bits,
    }
    return said | {document.CHECKSUM: document.checksum(said)}


def metadata_crc32(contents: Mapping[str, bytes]) -> int:
    """CRC-32 over the `zarr.json` files, the group's first, by their names in the segment."""
    crc = 0
    for name in METADATA:
        crc = zlib.crc32(contents[name], crc)
    return crc


def entry_of(files: Files, name: str) -> SegmentEntry:
    """The entry of a segment, from its own metadata. Raises Damaged when they fail a check."""
    folder = f"{SEGMENTS}/{name}"
    contents = {file: files.read(f"{folder}/{file}") for file in METADATA}
    try:
        said = _attributes(contents["zarr.json"], f"{files}/{folder}")
        return SegmentEntry(
            name=name,
            teacher=said["teacher"],
            temperature=BASE if said["temperature"] is None else said["temperature"],
            records=said["records"],
            states=said["states"],
            bytes=sum(file.size for file in files.walk(folder)),
            metadata_crc32=metadata_crc32(contents),
            sequences=said["records"] if said["temperature"] is None else 0,
            tokens=said["states"] - said["records"] if said["temperature"] is None else 0,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ValidationError) as error:
        raise Damaged(f"{folder} is damaged: {error}") from error


def format_of_segments(files: Files) -> Format | None:
    """The store's format as its segments know it, for the day when `store.json` is damaged. None when there is none."""
    for name in files.names(SEGMENTS):
        with suppress(Damaged, OSError, ValueError, LookupError, TypeError, AttributeError):
            return Format(int(_attributes(files.read(f"{SEGMENTS}/{name}/zarr.json"), name)["mantissa_bits"]))
    return None


def _attributes(group: bytes, name: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(group)["attributes"]
    if said.pop(document.CHECKSUM) != document.checksum(said):
        raise Damaged(f"{name} has metadata that do not match their checksum")
    check_version(said, name)
    return said


class Segment:
    """One segment. Every method raises Damaged when bytes fail a check, and the errors of `Files`."""

    def __init__(self, files: Files, entry: SegmentEntry, cache: ChunkCache) -> None:
        self.entry = entry
        self.folder = f"{SEGMENTS}/{entry.name}"
        width = len(columns(entry.temperature))
        like = {
            "values": (entry.states, np.empty((0, width), "<f4")),
            "offsets": (entry.records + 1, np.empty(0, "<i8")),
            "keys": (entry.records, np.empty((0, KEY_BYTES), np.uint8)),
        }
        self._shards = {
            name: Shard(files, f"{self.folder}/{shard_file(name)}", rows, row, cache, by_column=name == BY_COLUMN)
            for name, (rows, row) in like.items()
        }

    def block(self, row: int, key: bytes) -> Float32 | None:
        """The block that is record `row`, shape (S, columns), if it has this key; else None."""
        if self._shards["keys"].rows(row, row + 1).tobytes() != key:
            return None
        start, stop = self._shards["offsets"].rows(row, row + 2).tolist()
        if not 0 <= start < stop <= self.entry.states:
            raise Damaged(f"{self.folder} has offsets that fit no block")
        return check(self._shards["values"].rows(start, stop), self.entry.temperature)

    def keys(self) -> npt.NDArray[np.uint8]:
        """All keys, shape (records, 16)."""
        return self._shards["keys"].rows(0, self.entry.records)

    def offsets(self) -> npt.NDArray[np.int64]:
        """All offsets, shape (records + 1,)."""
        offsets = self._shards["offsets"].rows(0, self.entry.records + 1)
        if (offsets[0], offsets[-1]) != (0, self.entry.states) or (np.diff(offsets) < 2).any():
            raise Damaged(f"{self.folder} has offsets that do not fit its records")
        return offsets

    def values(self) -> Float32:
        """All rows, shape (states, columns)."""
        return self._shards["values"].rows(0, self.entry.states)

    def prime(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Have what was just written at hand, as if it had been read."""
        for name, rows in arrays.items():
            self._shards[name].prime(rows)
