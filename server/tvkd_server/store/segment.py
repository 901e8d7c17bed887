"""Writing a segment: under tmp/, read back, made durable, and only then published under its number."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.scored import Float32
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.cache import ChunkCache
from tvkd_shared.store.segment import (
    CHECKSUM,
    CHUNK_ROWS,
    Segment,
    attributes,
    metadata_checksum,
    segment_path,
    zarr_faults,
)


def write_segment(
    store: Path, number: int, temperature: float, keys: Sequence[bytes], blocks: Sequence[Float32]
) -> int:
    """Publishes the blocks, each of shape (S, columns), as segment `number`; returns its bytes on disk.

    Raises OSError when the disk fails, StoreUnavailable when zarr does or what was written does not read back. Then
    nothing is published, and what is left under tmp/ goes when the store is opened next.
    """
    path = store / "tmp" / f"{number:012d}"
    offsets = np.cumsum([0, *(len(block) for block in blocks)], dtype=np.int64)
    keys_array = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
    values = np.concatenate(blocks)
    try:
        with zarr_faults(path):
            _write_group(path, temperature, {"values": values, "offsets": offsets, "keys": keys_array})
        _verify(path, temperature, keys_array, offsets, values)
        size = _make_durable(path)
        path.rename(segment_path(store, number))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    sync(store / "segments")
    return size


def _write_group(path: Path, temperature: float, arrays: dict[str, npt.NDArray[Any]]) -> None:
    said = attributes(temperature, len(arrays["keys"]), len(arrays["values"]))
    group = zarr.create_group(LocalStore(path), attributes=said)
    for name, rows in arrays.items():
        inner = (CHUNK_ROWS, *rows.shape[1:])
        whole = (-(-len(rows) // CHUNK_ROWS) * CHUNK_ROWS, *rows.shape[1:])
        array = group.create_array(
            name,
            shape=rows.shape,
            chunks=inner,
            shards=whole,
            dtype=rows.dtype,
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
            fill_value={"values": np.nan, "offsets": -1, "keys": 0}[name],
            # Else a chunk of nothing but fill values is left out, and zarr answers for it what it likes.
            config={"write_empty_chunks": True},
        )
        array[...] = rows
    group.update_attributes(said | {CHECKSUM: metadata_checksum(path, said)})


def _verify(
    path: Path,
    temperature: float,
    keys: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    values: Float32,
) -> None:
    try:
        segment = Segment(path, ChunkCache(0))
        read_keys, read_offsets = segment.index()
        same = (
            segment.temperature == temperature
            and read_keys.tobytes() == keys.tobytes()
            and read_offsets.tobytes() == offsets.tobytes()
            and segment.values().tobytes() == values.tobytes()
        )
    except Damaged:
        same = False
    if not same:
        raise StoreUnavailable(f"{path} does not read back as it was written; the disk is failing")


def _make_durable(path: Path) -> int:
    size = 0
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(folder, name)
            size += file.stat().st_size
            sync(file)
        sync(Path(folder))
    return size


def sync(path: Path) -> None:
    """fsync of a file or a folder: zarr itself makes no fsync call."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
