"""A bound on the bytes of a request's body, counted as they come: a header can lie or be missing."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tvkd_server.problem import problem_response
from tvkd_shared.errors import PayloadTooLarge


class BodyLimit:
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received, answered = 0, False

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _TooLarge
            return message

        async def watching_send(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counting_receive, watching_send)
        except _TooLarge:
            if not answered:
                error = PayloadTooLarge(f"the body exceeds {self.max_bytes:,} bytes: split the request")
                await problem_response(error)(scope, receive, send)


class _TooLarge(BaseException):
    """Passes through handlers that turn every Exception into an answer of their own."""
