"""The decoded chunks read last, up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

Chunk = npt.NDArray[Any]


class ChunkCache:
    """Least recently used goes first. Thread safe; two threads that miss at once both load, which is harmless."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._chunks: OrderedDict[Hashable, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable, load: Callable[[], Chunk]) -> Chunk:
        """The chunk of that name, read-only; loaded when it is not here. What `load` raises is not kept."""
        with self._lock:
            if name in self._chunks:
                self._chunks.move_to_end(name)
                return self._chunks[name]
        chunk = load()
        chunk.setflags(write=False)
        with self._lock:
            if name not in self._chunks:
                self._chunks[name] = chunk
                self._bytes += chunk.nbytes
            while self._bytes > self._capacity:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes
        return chunk
