"""How a request is worked for: within its time, while its client is there, and with the event loop free for others."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from tvkd_server.metrics import Metrics
from tvkd_shared.errors import TeacherUnavailable

Answer = TypeVar("Answer")

SMALL = 128 << 10


async def in_time(request: Request, answering: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer. Raises TeacherUnavailable after --request-seconds, and gives up what is not with the engine yet."""
    seconds: float = request.app.state.request_seconds
    try:
        async with asyncio.timeout(seconds) as limit:
            return await answering
    except TimeoutError:
        if not limit.expired():  # one of the work's own
            raise
        raise TeacherUnavailable(
            f"not all was computed within {seconds:g} s, and what was is stored; ask again", retry_after=5
        ) from None


async def while_connected(request: Request, answering: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The answer; None, with its work cancelled, once the client has left. What another request waits for goes on."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.create_task(answering), asyncio.create_task(left())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        leaving.cancel()
        work.cancel()


async def convert(request: Request, operation: str, codec: Callable[[Any], Any], value: Any, body_bytes: int) -> Any:
    """Decode or encode: in a thread where it could take more than some milliseconds, which the loop then has."""
    metrics: Metrics = request.app.state.metrics
    with metrics.stage("codec", metrics.codec_seconds.labels(operation)):
        return codec(value) if body_bytes < SMALL else await asyncio.to_thread(codec, value)
