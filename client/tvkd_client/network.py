"""How a client waits: in threads, or on an event loop. All else of both clients is one body of code."""

import asyncio
import os
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import islice
from threading import Event
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import httpx

from tvkd_client.retry import answered_error
from tvkd_shared.errors import InvalidRequest

Result = TypeVar("Result")
Batch = TypeVar("Batch")
Tell = Callable[[Result], None]
Work = Callable[[], Coroutine[Any, Any, None]]


class Workers(Protocol):
    """Calls that are worked on side by side, and what they tell the one who started them. Leaving drops them."""

    async def __aenter__(self) -> "Workers": ...
    async def __aexit__(self, *_: object) -> None: ...
    def start(self, work: Work) -> None: ...
    def tell(self, told: Any) -> None: ...
    async def hear(self) -> Any: ...


class Network(Protocol):
    async def request(self, method: str, url: str, **content: Any) -> httpx.Response: ...
    def stream(
        self, method: str, url: str, **content: Any
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...  # raises what an answer other than 200 says
    async def sleep(self, given_up: Event, seconds: float) -> None: ...
    def workers(self, count: int) -> Workers: ...
    async def close(self) -> None: ...


class Threads:
    """A `Network` that blocks the calling thread, so that no `async` function of a client suspends: `run` runs it.

    Connections open at the first request of each process, so that a client can be pickled and forked. After a fork the
    parent's are left alone: its sockets belong to the parent.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._opened: dict[int, httpx.Client] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def __del__(self) -> None:
        # A thread that still waits for an answer holds the client, so no request is cut off.
        if opened := self.__dict__.get("_opened", {}).get(os.getpid()):
            opened.close()

    def connections(self) -> httpx.Client:
        """This process's connections."""
        opened = self._opened.get(os.getpid())
        # setdefault is atomic: of two threads that come here at once, one client is kept and the other never connects.
        return opened or self._opened.setdefault(os.getpid(), _open(httpx.Client, self._settings))

    async def request(self, method: str, url: str, **content: Any) -> httpx.Response:
        return self.connections().request(method, url, **content)

    @asynccontextmanager
    async def stream(self, method: str, url: str, **content: Any) -> AsyncGenerator[AsyncIterator[bytes], None]:
        with self.connections().stream(method, url, **content) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise answered_error(response)
            yield _each(response.iter_bytes())

    async def sleep(self, given_up: Event, seconds: float) -> None:
        given_up.wait(seconds)

    def workers(self, count: int) -> Workers:
        return _ThreadWorkers(count)

    async def close(self) -> None:
        if opened := self._opened.pop(os.getpid(), None):
            opened.close()


class Loop:
    """A `Network` on the running event loop of asyncio. Each loop has connections of its own."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._opened: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    async def request(self, method: str, url: str, **content: Any) -> httpx.Response:
        return await self._connections().request(method, url, **content)

    @asynccontextmanager
    async def stream(self, method: str, url: str, **content: Any) -> AsyncGenerator[AsyncIterator[bytes], None]:
        async with self._connections().stream(method, url, **content) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise answered_error(response)
            yield response.aiter_bytes()

    def _connections(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            self._opened[loop] = _open(httpx.AsyncClient, self._settings)
        return self._opened[loop]

    async def sleep(self, given_up: Event, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def workers(self, _count: int) -> Workers:
        return _TaskWorkers()

    async def close(self) -> None:
        if opened := self._opened.pop(asyncio.get_running_loop(), None):
            await opened.aclose()


def run(work: Awaitable[Result]) -> Result:
    """What a coroutine returns that awaits nothing but `Threads`. It runs to its end in this thread."""
    try:
        work.__await__().send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise AssertionError("a blocking client awaited an event loop")


async def as_told(
    network: Network,
    function: Callable[[Batch, Tell[Result]], Awaitable[None]],
    batches: Iterable[Batch],
    in_flight: int,
) -> AsyncGenerator[Result, None]:
    """What `function` tells of each batch, as it tells it; batches are drawn as they are needed, `in_flight` at once.

    An error, or an interrupt, drops the batches under way, which a thread cannot: Python waits for threads when the
    process ends, so `function` has to end soon once its caller has gone.
    """
    batches = iter(batches)
    async with network.workers(in_flight) as workers:

        async def work(batch: Batch) -> None:
            try:
                await function(batch, lambda result: workers.tell((result,)))
                workers.tell(())
            except BaseException as error:
                workers.tell(error)

        under_way = 0
        while True:
            # Drawn only when all that was told has been heard: no more answers wait here than were in flight.
            for batch in islice(batches, in_flight - under_way):
                workers.start(partial(work, batch))
                under_way += 1
            if not under_way:
                return
            told = await workers.hear()
            if isinstance(told, BaseException):
                raise told
            if told:
                yield told[0]
            else:
                under_way -= 1


async def _each(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


class _ThreadWorkers:
    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="tvkd")
        self._told = queue.SimpleQueue[Any]()
        self.tell = self._told.put

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, work: Work) -> None:
        self._pool.submit(lambda: run(work()))

    async def hear(self) -> Any:
        return self._told.get()


class _TaskWorkers:
    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()
        self._told = asyncio.Queue[Any]()
        self.tell, self.hear = self._told.put_nowait, self._told.get

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, work: Work) -> None:
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


Connections = TypeVar("Connections", httpx.Client, httpx.AsyncClient)


def _open(kind: type[Connections], settings: dict[str, Any]) -> Connections:
    try:
        return kind(**settings)
    except OSError as error:  # a file that is missing, or is no PEM file
        raise InvalidRequest(
            f"SSL_CERT_FILE {os.environ.get('SSL_CERT_FILE')} cannot be used: {error}; give a PEM file, or unset it"
        ) from error
