"""Group commit: records that wait are made durable together, by one fsync or one commit."""

import asyncio
import time
from contextlib import suppress

from tvkd_shared.record import Record
from tvkd_shared.store import Store

Records = list[tuple[bytes, Record]]


class GroupCommit:
    """Puts a teacher's records into a store, one batch at a time; what comes meanwhile is the next batch.

    A batch gathers for `seconds`, or until it holds `most_bytes`: each is one commit, which costs some round trips to
    object storage and nearly nothing on a disk.
    """

    def __init__(self, store: Store, teacher: str, *, seconds: float, most_bytes: int) -> None:
        self._store = store
        self._teacher = teacher
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._waiting: list[tuple[Records, asyncio.Future[None]]] = []
        self._bytes = 0
        self._since = 0.0  # when the first of the waiting came
        self._full = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def put(self, records: Records) -> None:
        """Return when the records are durable. Raises what the store raised, StoreUnavailable as a rule."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((records, durable))
        self._bytes += sum(record.nbytes for _, record in records)
        if self._bytes >= self._most_bytes:
            self._full.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await durable

    async def _run(self) -> None:
        while self._waiting:
            if (left := self._since + self._seconds - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), left)
            batch, self._waiting, self._bytes = self._waiting, [], 0
            self._full.clear()
            records = [record for records, _ in batch for record in records]
            try:
                await asyncio.to_thread(self._store.put, self._teacher, records)
            except BaseException as error:
                for _, durable in batch:
                    if not durable.done():
                        durable.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for _, durable in batch:
                    if not durable.done():
                        durable.set_result(None)
