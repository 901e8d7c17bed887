"""Whether the server can answer: not while the teacher loads, after it failed to, or while draining."""

import asyncio
import logging
from collections.abc import Callable

from tvkd_server.service import Service
from tvkd_shared.errors import TeacherUnavailable

logger = logging.getLogger(__name__)


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

    def ready_service(self) -> Service:
        """The service. Raises TeacherUnavailable with the reason when it cannot answer now."""
        if self.draining:
            raise TeacherUnavailable("the server is stopping; try again in some seconds", retry_after=5)
        if self.service is None:
            raise TeacherUnavailable("the teacher is loading; try again in some seconds", retry_after=5)
        return self.service
