"""What holds for every exchange of request and answer, whoever answers it: a bound, a last word, a count."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tvkd_server.logs import REQUESTS
from tvkd_server.media_types import ARROW
from tvkd_server.metrics import Metrics
from tvkd_server.problem import CODE, problem_response
from tvkd_server.readiness import Readiness
from tvkd_server.timing import CURRENT, Timing
from tvkd_shared.errors import PayloadTooLarge, TeacherUnavailable, TVKDError

JSON_BYTES = 1 << 20
"""The largest JSON body. Nothing else runs while JSON is parsed, which takes some hundredths of a second here."""


class Exchange:
    """ASGI middleware.

    - A body larger than `max_bytes`, or than JSON_BYTES unless it is Arrow, is refused: by its declared length before a
      byte is read, and as it is counted, since a header can lie or be missing. The app asks for no body before it has
      checked the key.
    - A request that a stopping server has no time left for is told to ask again: another server may be up then.
    - Every request for values is counted and logged by its outcome: `ok`, or an error's code.
    - Every answer has an `X-Request-Id`, the client's own or a new one, and `Server-Timing` unless it is streamed.
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
        received, outcome = 0, None
        headers = Headers(scope=scope)
        timing = Timing(headers.get("x-request-id", ""))
        CURRENT.set(timing)
        is_arrow = headers.get("content-type", "").lower().startswith(ARROW)
        most = self.max_bytes if is_arrow else min(self.max_bytes, JSON_BYTES)

        async def bounded_receive() -> Message:
            nonlocal received
            declared = headers.get("content-length", "")
            if not received and declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
                raise _TooLarge
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _TooLarge
            return message

        async def noting_send(message: Message) -> None:
            nonlocal outcome
            outcome = outcome or scope.get(CODE, "ok")
            if message["type"] == "http.response.start":
                about = MutableHeaders(scope=message)
                about["X-Request-Id"] = timing.request_id
                if "content-length" in about:  # of a streamed answer only the beginning is known
                    about["Server-Timing"] = timing.header()
            await send(message)

        async def refuse(error: TVKDError) -> None:
            with suppress(OSError):
                await problem_response(error)(scope, receive, noting_send)

        try:
            await self.app(scope, bounded_receive, noting_send)
        except _TooLarge:
            if outcome is None:
                advice = "split the request" if is_arrow else f"split the request, or send it as {ARROW}"
                await refuse(PayloadTooLarge(f"the body exceeds {most:,} bytes: {advice}"))
        except asyncio.CancelledError:
            # Cancelled at the end of --drain-seconds, and not by a client that went away.
            if not self.readiness.draining or outcome is not None:
                raise
            await refuse(TeacherUnavailable("the server stopped before it had computed this; ask again", retry_after=5))
        except Exception:
            scope[CODE] = "internal-error"
            raise
        finally:
            if scope["path"] in ("/v1/potentials", "/v1/shaping"):
                self._note(scope.get(CODE) or outcome or "disconnected", timing, scope, received)

    def _note(self, outcome: str, timing: Timing, scope: Scope, received: int) -> None:
        seconds = timing.total
        self.metrics.requests.labels(outcome).inc()
        self.metrics.request_seconds.observe(seconds)
        client = scope.get("state", {}).get("client")
        address = (scope.get("client") or [""])[0]
        REQUESTS.info(
            scope["path"],
            extra={
                "outcome": outcome,
                "client": client.name if client and client.name else address,
                "received_bytes": received,
                "seconds": round(seconds, 6),
                "stages": {name: round(spent, 6) for name, spent in timing.seconds.items()},
            },
        )


class _TooLarge(BaseException):
    """Passes through handlers that turn every Exception into an answer of their own."""
