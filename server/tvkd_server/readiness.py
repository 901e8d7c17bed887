"""Whether the server can answer: not while the teacher loads, after it failed to or died, or while draining."""

import asyncio
import logging
from collections.abc import Callable

from tvkd_server.service import Service
from tvkd_shared.errors import TeacherUnavailable

logger = logging.getLogger(__name__)


GRACE_SECONDS = 5.0
"""From the engine's death to the process's end: requests in flight are told, and probes see `/readyz` fail."""


class Readiness:
    def __init__(self) -> None:
        self.service: Service | None = None
        self.failure: Exception | None = None
        self.draining = False

    async def load(self, open_service: Callable[[], Service], on_failure: Callable[[], None]) -> None:
        """Open the service in a thread, so that the process answers meanwhile that it is not ready."""
        try:
            self.service = await asyncio.to_thread(open_service)
        except Exception as error:
            self.failure = error
            on_failure()
        else:
            info = self.service.teacher.info
            logger.info("ready: %s (%s, %s), teacher id %s", info.name, info.engine, info.dtype, info.id)

    async def watch(self, loading: "asyncio.Task[None]", on_failure: Callable[[], None]) -> None:
        """Once loaded, wait for the engine's death; then answer that it is dead for a grace, and call `on_failure`."""
        await loading
        if self.service is None:
            return
        await self.service.teacher.died()
        if not self.draining:
            self.failure = TeacherUnavailable("the teacher's engine died; the server ends, to be started again")
            logger.error("%s", self.failure)
            await asyncio.sleep(GRACE_SECONDS)
            on_failure()

    def ready_service(self) -> Service:
        """The service. Raises TeacherUnavailable with the reason when it cannot answer now."""
        if self.draining:
            raise TeacherUnavailable("the server is stopping; try again in some seconds", retry_after=5)
        if self.failure is not None:
            raise TeacherUnavailable("the teacher is dead and the server ends; try again in a minute", retry_after=30)
        if self.service is None:
            raise TeacherUnavailable("the teacher is loading; try again in some seconds", retry_after=5)
        return self.service
