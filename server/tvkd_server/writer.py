"""Group commit: records that wait are made durable together, by one fsync or one commit."""

import asyncio
import time
from contextlib import suppress

from tvkd_server.settings import ServeSettings
from tvkd_shared.record import Record
from tvkd_shared.store import Store

Records = list[tuple[bytes, Record]]


class GroupCommit:
    """Puts a teacher's records into a store, one batch at a time; what comes meanwhile is the next batch.

    In object storage, where a commit costs some round trips, a batch gathers for `publish_seconds` or until it holds
    `seal_bytes`. On a disk it costs nearly nothing, and nothing waits.
    """

    def __init__(self, store: Store, teacher_id: str, settings: ServeSettings) -> None:
        self._store = store
        self._teacher_id = teacher_id
        self._seconds = settings.publish_seconds if store.remote else 0.0
        self._most_bytes = settings.seal_bytes
        self._waiting: list[tuple[Records, asyncio.Future[list[Record]]]] = []
        self._bytes = 0
        self._since = 0.0  # when the first of the waiting came
        self._full = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def put(self, records: Records) -> list[Record]:
        """The records as they are stored, once they are durable. Raises what the store raised."""
        stored: asyncio.Future[list[Record]] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((records, stored))
        self._bytes += sum(record.nbytes for _, record in records)
        if self._bytes >= self._most_bytes:
            self._full.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await stored

    async def _run(self) -> None:
        while self._waiting:
            if (remaining := self._since + self._seconds - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), remaining)
            batch, self._waiting, self._bytes = self._waiting, [], 0
            self._full.clear()
            records = [record for records, _ in batch for record in records]
            try:
                stored = iter(await asyncio.to_thread(self._store.put, self._teacher_id, records))
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for part, future in batch:
                    answer = [next(stored) for _ in part]
                    if not future.done():
                        future.set_result(answer)
