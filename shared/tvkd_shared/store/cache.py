"""What keeps a store's reads few: a cache of decoded chunks, and one request for all threads that wait for it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

import numpy.typing as npt

from tvkd_shared.errors import StoreUnavailable

Chunk = npt.NDArray[Any]


class ChunkCache:
    """The chunks used last, up to a number of bytes. Thread safe; two threads that miss at once may both load."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._chunks: OrderedDict[Hashable, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable, load: Callable[[], Chunk]) -> Chunk:
        """The chunk of that name, read-only, which is loaded when it is not in the cache."""
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


class SharedFailureLock:
    """A lock around a request. Threads that waited while the request of another failed raise the same failure.

    Otherwise each of them would try in turn, and wait as long as a failing request takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed_at = float("-inf")
        self._failure = ""

    def __enter__(self) -> None:
        began = time.monotonic()
        self._lock.acquire()
        if self._failed_at > began:
            failure = self._failure
            self._lock.release()
            raise StoreUnavailable(failure)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StoreUnavailable):
            self._failed_at, self._failure = time.monotonic(), str(error)
        self._lock.release()
