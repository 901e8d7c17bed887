"""Whether the server can answer: not while the teacher loads, after it failed to or died, or while draining."""

import asyncio
import logging
from collections.abc import Callable

from tvkd_server.service import Service
from tvkd_server.teachers.teacher import NotFinite
from tvkd_shared.errors import TeacherUnavailable
from tvkd_shared.record import column_names

logger = logging.getLogger(__name__)


GRACE_SECONDS = 5.0
"""From the engine's death to the process's end: requests in flight are told, and probes see `/readyz` fail."""
PROBE_SECONDS = 60.0
"""How long an engine may score nothing before it is asked whether it still can."""


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
        """Once loaded, wait until the engine dies, or fails at every question; then say so for a grace, and call
        `on_failure`."""
        await loading
        if self.service is None:
            return
        ends = [asyncio.create_task(self.service.teacher.died()), asyncio.create_task(_fails(self.service))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
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


async def _fails(service: Service) -> None:
    """Return once an engine that scores nothing has failed twice in a row at the smallest question.

    An error of CUDA leaves the process alive and every later pass failing. A question that is slow is no failure: the
    engine may be busy with a long pass. Twice, because another process may have taken a GPU's memory for a moment.
    """
    failures = 0
    while failures < 2:
        scored = service.metrics.count("tvkd_teacher_tokens_total")
        await asyncio.sleep(PROBE_SECONDS)
        if service.metrics.count("tvkd_teacher_tokens_total") > scored:
            failures = 0
            continue
        try:
            await service.teacher.score([0], [[0]], column_names([1.0]))
            failures = 0
        except NotFinite:  # which says that the engine computes
            failures = 0
        except TeacherUnavailable as error:
            failures += 1
            logger.error("the engine failed at a question of two tokens: %s", error)
