"""Group commit: records that wait while the store is busy are made durable together, by one fsync."""

import asyncio

from tvkd_server.store import Store
from tvkd_shared.scored import Scored

Records = list[tuple[bytes, Scored]]


class GroupCommit:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Records, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def put(self, records: Records) -> None:
        """Return when the records are durable. Raises what the store raised, StoreUnavailable as a rule."""
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, durable))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await durable

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._store.put, [record for records, _ in batch for record in records])
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
