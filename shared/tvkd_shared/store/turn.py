"""A lock for a request that others wait for."""

import threading
import time
from types import TracebackType

from tvkd_shared.errors import StoreUnavailable


class Turn:
    """One thread at a time. Those that waited while another's failed share its failure: the service is tried once more
    by whoever comes later, not by each of them in turn, which takes as long as a failing request each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = float("-inf")
        self._failure: StoreUnavailable | None = None

    def __enter__(self) -> None:
        asked = time.monotonic()
        self._lock.acquire()
        if self._failure is not None and self._failed > asked:
            failure = str(self._failure)
            self._lock.release()
            raise StoreUnavailable(failure)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StoreUnavailable):
            self._failed, self._failure = time.monotonic(), error
        self._lock.release()
