"""One request as it is known to whoever watches: its id, and where its time goes."""

import re
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Timing:
    """A request's id, and the seconds during which at least one prompt of it was in each stage.

    Prompts are worked on side by side. So the seconds are no sum over prompts, and stages overlap. An id that the
    client gave is kept if it has 1 to 64 letters, digits, `.`, `_` and `-`, so that it can stand in a log and a header.
    """

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        self.seconds = defaultdict[str, float](float)
        self._inside = Counter[str]()
        self._since: dict[str, float] = {}
        self._started = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self._inside[name]:
            self._since[name] = time.perf_counter()
        self._inside[name] += 1
        try:
            yield
        finally:
            self._inside[name] -= 1
            if not self._inside[name]:
                self.seconds[name] += time.perf_counter() - self._since[name]

    def header(self) -> str:
        """The value of `Server-Timing`, in milliseconds."""
        stages = {**self.seconds, "total": self.total}
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in stages.items())


CURRENT: ContextVar[Timing | None] = ContextVar("timing", default=None)
"""The request that the present task works for."""
