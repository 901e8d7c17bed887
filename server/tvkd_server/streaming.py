"""An answer that is sent item by item, as an Arrow stream in order of completion."""

import asyncio
import logging

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from tvkd_server.keys import Client
from tvkd_server.media_types import ARROW
from tvkd_server.problem import CODE, problem_of, unread
from tvkd_server.service import Service
from tvkd_server.waiting import convert, in_time, while_connected
from tvkd_shared.arrow_stream import AnswerWriter
from tvkd_shared.errors import TeacherUnavailable, TVKDError
from tvkd_shared.wire import ItemAnswer, PotentialsRequest

logger = logging.getLogger(__name__)

Items = dict[int, ItemAnswer]


async def streamed(request: Request, service: Service, question: PotentialsRequest, client: Client) -> Response:
    """The answer, once its first items are there. Raises what is wrong before, which is answered with its status."""
    ready: asyncio.Queue[Items] = asyncio.Queue()
    work = asyncio.create_task(in_time(request, service.items(question, client, ready.put_nowait)))

    def finished(done: "asyncio.Task[None]") -> None:
        if not done.cancelled():
            done.exception()  # read once, so that asyncio does not warn when the client has left
        ready.put_nowait({})

    work.add_done_callback(finished)
    try:
        first = await while_connected(request, ready.get())
        if first:
            return _Streamed(request, AnswerWriter(question, service.teacher.info.id), first, ready, work)
    except BaseException:
        work.cancel()
        raise
    if first is None:
        work.cancel()
        return unread(request)
    await work  # it raises: an answer has one item at least
    raise AssertionError("a request was answered with no items")


class _Streamed(Response):
    """Sends items as they become ready: as many as are, in one batch.

    What is ready and not yet sent waits here, and no more than a request may hold: a slow reader does not hold the
    teacher up. When it leaves, or is cut off because it does not read, what is not with the engine is given up.
    """

    def __init__(
        self,
        request: Request,
        writer: AnswerWriter,
        first: Items,
        ready: "asyncio.Queue[Items]",
        work: "asyncio.Task[None]",
    ) -> None:
        super().__init__(media_type=ARROW)
        del self.headers["content-length"]
        self._request, self._writer, self._first, self._ready, self._work = request, writer, first, ready, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CODE] = "disconnected"  # unless it comes to its end
        try:
            await while_connected(self._request, self._send(scope, send))
        except asyncio.CancelledError:
            # At the end of --drain-seconds the connection is cut, and the client asks another server for the rest.
            if not self._request.app.state.readiness.draining:
                raise
            scope[CODE] = TeacherUnavailable.code
        finally:
            self._work.cancel()

    async def _send(self, scope: Scope, send: Send) -> None:
        async def body(part: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        items = self._first
        while items or not self._work.done():
            while not self._ready.empty():
                items |= self._ready.get_nowait()
            if items:
                values = sum(completion.length for item in items.values() for completion in item.completions)
                await body(await convert(self._request, "encode", self._writer.part, items, 16 * values))
            items = {} if self._work.done() and self._ready.empty() else await self._ready.get()
        error = self._work.exception()
        if error is None:
            scope[CODE] = "ok"
            await body(self._writer.end(), more=False)
            return
        problem = problem_of(error)
        scope[CODE] = problem.code
        fault = None if isinstance(error, TVKDError) else error
        logger.error("a streamed answer ends early: %s: %s", problem.code, problem.detail, exc_info=fault)
        # With no end to the body the server cuts the connection, so that no client takes the answer for a whole one.
        await body(self._writer.failure(problem, getattr(error, "retry_after", None)))
