"""Making a segment: the files of its Zarr group, in memory, read back before anybody relies on them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.storage import MemoryStore

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Float32
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.entry import SEGMENTS, SegmentEntry
from tvkd_shared.store.segment import ARRAYS, BY_COLUMN, Segment, attributes, metadata_crc32
from tvkd_shared.store.shard import CHUNK_ROWS

DIMENSIONS = {"values": ("state", "column"), "offsets": ("boundary",), "keys": ("record", "byte")}
"""Names that xarray asks for."""


@dataclass(frozen=True, slots=True, eq=False)
class NewSegment:
    """A segment that is not published yet. `contents` are its files by their names in it, the group's own last."""

    entry: SegmentEntry
    contents: dict[str, bytes]
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Completion tokens of each record, shape (records,)."""
        return np.diff(self.arrays["offsets"]) - 1


def new_segment(
    name: str, teacher: str, temperature: float, blocks: Mapping[bytes, Float32], *, mantissa_bits: int
) -> NewSegment:
    """A segment of the blocks of each key, of shape (S, columns).

    Raises StoreUnavailable when zarr fails, or what it wrote does not read back.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "values": np.concatenate(list(blocks.values()), dtype=np.float32),
        "offsets": np.cumsum([0, *map(len, blocks.values())], dtype=np.int64),
        "keys": np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, KEY_BYTES),
    }
    entry = SegmentEntry(
        name=name, teacher=teacher, temperature=temperature, records=len(blocks), states=len(arrays["values"]),
        bytes=0, metadata_crc32=0,
    )  # fmt: skip
    with _zarr_faults():
        contents = _group(arrays, attributes(entry, mantissa_bits))
    size = sum(map(len, contents.values()))
    entry = entry.model_copy(update={"bytes": size, "metadata_crc32": metadata_crc32(contents)})
    made = NewSegment(entry, contents, arrays)
    _read_back(made)
    return made


def _group(arrays: Mapping[str, npt.NDArray[Any]], said: dict[str, Any]) -> dict[str, bytes]:
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), attributes=said)
    for name, rows in arrays.items():
        array = group.create_array(
            name,
            shape=rows.shape,
            chunks=(CHUNK_ROWS, *rows.shape[1:]),
            shards=(-(-len(rows) // CHUNK_ROWS) * CHUNK_ROWS, *rows.shape[1:]),
            dtype=rows.dtype,
            dimension_names=DIMENSIONS[name],
            filters=[TransposeCodec(order=(1, 0))] if name == BY_COLUMN else None,
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
            # zarr answers a missing shard with the fill value, so these are no values.
            fill_value={"values": np.nan, "offsets": -1, "keys": 0}[name],
            # Else a chunk of nothing but fill values is left out.
            config={"write_empty_chunks": True},
        )
        array[...] = rows
    contents = {name: bytes(content.to_bytes()) for name, content in memory.items()}
    return contents | {"zarr.json": contents.pop("zarr.json")}


def _read_back(made: NewSegment) -> None:
    """As readers will: blosc or zarr may be at fault, which a checksum does not show."""
    try:
        segment = Segment(_InMemory(made), made.entry, ChunkCache(0))
        read = [rows.tobytes() for rows in (segment.values(), segment.offsets(), segment.keys())]
        same = read == [made.arrays[name].tobytes() for name in ARRAYS]
    except (Damaged, FileNotFoundError):
        same = False
    if not same:
        raise StoreUnavailable(f"segment {made.entry.name} does not read back as it was made; check zarr and numcodecs")


class _InMemory:
    """The files of a segment that is nowhere yet, as far as reading it needs."""

    remote = False

    def __init__(self, made: NewSegment) -> None:
        self._contents = {f"{SEGMENTS}/{made.entry.name}/{name}": content for name, content in made.contents.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        return self._contents[name][start:stop]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@contextmanager
def _zarr_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise StoreUnavailable(f"zarr cannot make a segment: {what}; check that zarr and its codecs work") from error
