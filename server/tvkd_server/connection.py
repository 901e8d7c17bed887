"""Bounds on connections, which uvicorn leaves to a proxy: how many there are, and how long a transfer may take.

uvicorn documents no way to extend its protocol class, so what is used of it (`cycle`, `connections`, `transport`) is
used here alone. Both of its classes have it, that of httptools and that of h11.
"""

import asyncio
from functools import partial
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tvkd_shared.errors import Overloaded
from tvkd_shared.wire import Problem

KEEP_ALIVE_SECONDS = 20
"""How long a connection may be idle: longer than httpx keeps one, so that a client never meets a closing one."""

_PROBLEM = Problem(
    title="Overloaded",
    status=Overloaded.status,
    detail="every connection of the server is busy with a request; try again in a second",
    code=Overloaded.code,
).model_dump_json()
_REFUSAL = (
    f"HTTP/1.1 {Overloaded.status} Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    f"Connection: close\r\nContent-Length: {len(_PROBLEM)}\r\n\r\n{_PROBLEM}"
).encode()


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection. It is cut when a request takes too long to arrive, or an answer too long to be read.

    Where there are too many, the one that has waited longest for a request makes room, so that half-open connections
    keep nobody out. When all are busy, a new one is refused.
    """

    def __init__(self, *, most: int, transfer_seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._most, self._seconds = most, transfer_seconds
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._waits_since = 0.0

    @property
    def waits(self) -> bool:
        """Whether no whole request is there that is still to be answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:
        full = len(self.connections) >= self._most
        waiting = [other for other in self.connections if isinstance(other, Connection) and other.waits] if full else []
        super().connection_made(transport)
        if waiting:
            min(waiting, key=lambda other: other._waits_since).transport.abort()
        elif full:
            transport.write(_REFUSAL)
            transport.close()
            return
        self._waits_since = self.loop.time()
        self._receiving = self._cut_later()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.waits and self._receiving is None:
            self._waits_since = self.loop.time()
            self._receiving = self._cut_later()
        elif not self.waits and self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self._sending or self._cut_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def shutdown(self) -> None:
        super().shutdown()
        self._end_tls()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_tls()

    def _end_tls(self) -> None:
        """An idle client does not answer the end of a TLS session, and asyncio would wait 30 seconds for it."""
        if self.transport.is_closing() and self.transport.get_extra_info("ssl_object"):
            self.loop.call_later(1, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._receiving, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _cut_later(self) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle = self.loop.call_later(self._seconds, self.transport.abort)
        return timer


def bounded(most: int, transfer_seconds: float) -> Any:
    """What uvicorn makes its connections with."""
    return partial(Connection, most=most, transfer_seconds=transfer_seconds)
