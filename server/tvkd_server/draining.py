"""The last word to a request that a stopping server has no time left for: ask again, another server may be up then."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tvkd_server.problem import problem_response
from tvkd_server.readiness import Readiness
from tvkd_shared.errors import TeacherUnavailable


class Draining:
    def __init__(self, app: ASGIApp, readiness: Readiness) -> None:
        self.app = app
        self.readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def watching_send(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, watching_send)
        except asyncio.CancelledError:
            # Cancelled at the end of --drain-seconds, and not by a client that went away.
            if not self.readiness.draining or answered or scope["type"] != "http":
                raise
            error = TeacherUnavailable("the server stopped before it had computed this; try again", retry_after=5)
            with suppress(OSError):
                await problem_response(error)(scope, receive, send)
