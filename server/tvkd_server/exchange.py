"""What holds for every exchange of request and answer, whoever answers it: a bound, a last word, a count."""

import asyncio
import time
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tvkd_server.metrics import Metrics
from tvkd_server.problem import CODE, problem_response
from tvkd_server.readiness import Readiness
from tvkd_shared.errors import PayloadTooLarge, TeacherUnavailable, TVKDError


class Exchange:
    """ASGI middleware.

    - A body larger than `max_bytes` is refused. It is counted as it comes, since a header can lie or be missing.
    - A request that a stopping server has no time left for is told to ask again: another server may be up then.
    - Every potentials request is counted by its outcome: `ok`, or an error's code.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, readiness: Readiness, metrics: Metrics) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.readiness = readiness
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, received, outcome = time.perf_counter(), 0, None

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _TooLarge
            return message

        async def noting_send(message: Message) -> None:
            nonlocal outcome
            outcome = outcome or scope.get(CODE, "ok")
            await send(message)

        async def refuse(error: TVKDError) -> None:
            with suppress(OSError):
                await problem_response(error)(scope, receive, noting_send)

        try:
            await self.app(scope, bounded_receive, noting_send)
        except _TooLarge:
            if outcome is None:
                await refuse(PayloadTooLarge(f"the body exceeds {self.max_bytes:,} bytes: split the request"))
        except asyncio.CancelledError:
            # Cancelled at the end of --drain-seconds, and not by a client that went away.
            if not self.readiness.draining or outcome is not None:
                raise
            await refuse(TeacherUnavailable("the server stopped before it had computed this; ask again", retry_after=5))
        except Exception:
            outcome = "internal-error"
            raise
        finally:
            if scope["path"] == "/v1/potentials":
                self.metrics.requests.labels(outcome or "disconnected").inc()
                self.metrics.request_seconds.observe(time.perf_counter() - started)


class _TooLarge(BaseException):
    """Passes through handlers that turn every Exception into an answer of their own."""
