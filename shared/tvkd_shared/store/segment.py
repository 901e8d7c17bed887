"""A segment: an immutable Zarr v3 group of blocks of one teacher that have the same columns.

    values   (states, columns) float32   the blocks, one after the other
    offsets  (records + 1,)    int64     rows offsets[r] … offsets[r + 1] of `values` are record r
    keys     (records, 16)     uint8

Each array is one shard; see `shard`. The attributes of the group name the columns, and so does the commit.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32, column_names
from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged, are_sound, check
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.files import Files
from tvkd_shared.store.format import FORMAT_NAME, FORMAT_VERSION, Format, check_version
from tvkd_shared.store.shard import CHUNK_ROWS, Shard

SEGMENTS = "segments"
ARRAYS = {"values": ("state", "column"), "offsets": ("boundary",), "keys": ("record", "byte")}
"""The arrays and the names of their dimensions, which xarray asks for."""
METADATA = ("zarr.json", *(f"{name}/zarr.json" for name in ARRAYS))


class SegmentEntry(BaseModel):
    """What a commit says of one segment.

    name               its folder under `segments/`
    teacher, columns   whose numbers it holds, and which
    records, states    its blocks and their rows
    bytes              of all its files
    metadata_crc32     CRC-32 over its `zarr.json` files, in the order of METADATA
    order              number of the commit that published it, or the first of its parts; of two copies of a column of a
                       key the one with the lower order counts
    sequences, tokens  completions that this segment brought into the store, and their tokens; see `counts_sequences`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    teacher: str
    columns: tuple[str, ...]
    records: int
    states: int
    bytes: int
    metadata_crc32: int
    order: int = 0
    sequences: int = 0
    tokens: int = 0

    @property
    def rank(self) -> tuple[int, str]:
        """What segments are sorted by: of several copies of a column the first counts."""
        return self.order, self.name

    @property
    def counts_sequences(self) -> bool:
        """Whether completions are counted here: a completion counts where its first column is."""
        return column_names()[0] in self.columns


def attributes(entry: SegmentEntry, mantissa_bits: int) -> dict[str, Any]:
    """The attributes of a segment's group, with their checksum."""
    plain = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "mantissa_bits": mantissa_bits}
    plain |= entry.model_dump(mode="json", include={"teacher", "columns", "records", "states"})
    return plain | {document.CHECKSUM: document.checksum(plain)}


def read_attributes(group: bytes, name: str) -> dict[str, Any]:
    """The attributes in a group's `zarr.json`. Raises Damaged when they fail their check."""
    try:
        plain: dict[str, Any] = json.loads(group)["attributes"]
        if plain.pop(document.CHECKSUM) != document.checksum(plain):
            raise Damaged(f"{name} has attributes that do not match their checksum")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{name} is damaged: {error}") from error
    check_version(plain, name)
    return plain


def metadata_crc32(contents: Mapping[str, bytes]) -> int:
    """CRC-32 over the `zarr.json` files, by their names in the segment."""
    return zlib.crc32(b"".join(contents[name] for name in METADATA))


def format_of_segments(files: Files) -> Format | None:
    """The store's format as a segment states it, for a damaged `store.json`. None when no segment can be read."""
    for name in files.names(SEGMENTS):
        with suppress(Damaged, OSError):
            return Format(int(read_attributes(files.read(f"{SEGMENTS}/{name}/zarr.json"), name)["mantissa_bits"]))
    return None


class Segment:
    """Reads one segment. Every method raises Damaged when bytes fail a check, and the errors of `Files`."""

    def __init__(self, files: Files, entry: SegmentEntry, cache: ChunkCache) -> None:
        self.entry = entry
        self.folder = f"{SEGMENTS}/{entry.name}"
        self._sound: set[int] = set()
        """Chunks of `values` whose numbers are all as they may be, so that no block of them need be checked again."""
        shapes = {
            "values": (entry.states, np.empty((0, len(entry.columns)), "<f4")),
            "offsets": (entry.records + 1, np.empty(0, "<i8")),
            "keys": (entry.records, np.empty((0, KEY_BYTES), np.uint8)),
        }
        self._shards = {
            name: Shard(files, f"{self.folder}/{shard_file(name)}", rows, like, cache, by_column=name == "values")
            for name, (rows, like) in shapes.items()
        }

    def block(self, row: int, key: bytes) -> Float32 | None:
        """The block that is record `row`, read-only float32 [S, K], if it has this key; else None."""
        if row >= self.entry.records or self._shards["keys"].rows(row, row + 1).tobytes() != key:
            return None
        start, stop = self._shards["offsets"].rows(row, row + 2).tolist()
        if not 0 <= start < stop <= self.entry.states:
            raise Damaged(f"{self.folder} has offsets that fit no block")
        block = self._shards["values"].rows(start, stop)
        chunks = {start // CHUNK_ROWS, (stop - 1) // CHUNK_ROWS}
        return block if all(map(self._is_sound, chunks)) else check(self.entry.columns, block)

    def _is_sound(self, chunk: int) -> bool:
        if chunk not in self._sound:
            first, last = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, self.entry.states)
            ends = self.offsets()[1:] - 1 - first
            if not are_sound(self.entry.columns, self._shards["values"].rows(first, last), ends):
                return False
            self._sound.add(chunk)
        return True

    def keys(self) -> npt.NDArray[np.uint8]:
        """All keys, uint8 [records, 16]."""
        return self._shards["keys"].rows(0, self.entry.records)

    def offsets(self) -> npt.NDArray[np.int64]:
        """All offsets, int64 [records + 1]."""
        offsets = self._shards["offsets"].rows(0, self.entry.records + 1)
        if (offsets[0], offsets[-1]) != (0, self.entry.states) or (np.diff(offsets) < 2).any():
            raise Damaged(f"{self.folder} has offsets that do not fit its records")
        return offsets

    def values(self) -> Float32:
        """All rows, float32 [states, columns]."""
        return self._shards["values"].rows(0, self.entry.states)

    def prime(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put what was just written into the cache, as if it had been read."""
        for name, rows in arrays.items():
            self._shards[name].prime(rows)


@dataclass(frozen=True, slots=True, eq=False)
class NewSegment:
    """A segment that is not published yet. `contents` are its files by their names in it, the group's own last."""

    entry: SegmentEntry
    contents: dict[str, bytes]
    arrays: dict[str, npt.NDArray[Any]]


def new_segment(
    name: str, teacher: str, columns: Sequence[str], blocks: Mapping[bytes, Float32], *, mantissa_bits: int
) -> NewSegment:
    """A segment of the block of each key.

    Raises StoreUnavailable when zarr fails, or what it wrote does not read back.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "values": np.concatenate(list(blocks.values()), dtype=np.float32),
        "offsets": np.cumsum([0, *map(len, blocks.values())], dtype=np.int64),
        "keys": np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, KEY_BYTES),
    }
    entry = SegmentEntry(
        name=name, teacher=teacher, columns=tuple(columns), records=len(blocks), states=len(arrays["values"]),
        bytes=0, metadata_crc32=0,
    )  # fmt: skip
    with _zarr_faults():
        contents = _group(arrays, attributes(entry, mantissa_bits))
    entry = entry.model_copy(
        update={"bytes": sum(map(len, contents.values())), "metadata_crc32": metadata_crc32(contents)}
    )
    # Read it as readers will: a fault of blosc or zarr does not show in a checksum.
    files: Any = SimpleNamespace(read=lambda path, start, stop=None: contents[path.split("/", 2)[2]][start:stop])
    segment = Segment(files, entry, ChunkCache(0))
    try:
        read = {"values": segment.values(), "offsets": segment.offsets(), "keys": segment.keys()}
        same = all(np.asarray(rows).tobytes() == arrays[array].tobytes() for array, rows in read.items())
    except Damaged:
        same = False
    if not same:
        raise StoreUnavailable(f"segment {name} does not read back as it was made; check zarr and numcodecs")
    return NewSegment(entry, contents, arrays)


def shard_file(array: str) -> str:
    """The file of an array's one shard: `c`, then a zero for each dimension."""
    return f"{array}/c" + "/0" * len(ARRAYS[array])


def _group(arrays: Mapping[str, npt.NDArray[Any]], group_attributes: dict[str, Any]) -> dict[str, bytes]:
    import zarr  # noqa: PLC0415 - a reader does not need it, and it takes long to load
    from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec  # noqa: PLC0415
    from zarr.storage import MemoryStore  # noqa: PLC0415

    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), attributes=group_attributes)
    for name, rows in arrays.items():
        array = group.create_array(
            name,
            shape=rows.shape,
            chunks=(CHUNK_ROWS, *rows.shape[1:]),
            shards=(-(-len(rows) // CHUNK_ROWS) * CHUNK_ROWS, *rows.shape[1:]),
            dtype=rows.dtype,
            dimension_names=ARRAYS[name],
            filters=[TransposeCodec(order=(1, 0))] if name == "values" else None,
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
            # zarr answers a missing shard with the fill value, so these cannot be values.
            fill_value={"values": np.nan, "offsets": -1, "keys": 0}[name],
            # Otherwise a chunk of nothing but fill values is left out.
            config={"write_empty_chunks": True},
        )
        array[...] = rows
    contents = {name: bytes(content.to_bytes()) for name, content in memory.items()}
    return contents | {"zarr.json": contents.pop("zarr.json")}


@contextmanager
def _zarr_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise StoreUnavailable(f"zarr cannot make a segment: {what}; check that zarr and its codecs work") from error
