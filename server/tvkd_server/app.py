"""The FastAPI app of one teacher and one store."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from tvkd_server import problem, routes
from tvkd_server.exchange import Exchange
from tvkd_server.keys import Keys
from tvkd_server.metrics import Metrics
from tvkd_server.page import page
from tvkd_server.readiness import Readiness
from tvkd_server.service import Service
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import Teacher
from tvkd_server.tracing import send_traces
from tvkd_shared.store import open_store


def create_app(
    settings: ServeSettings,
    load_teacher: Callable[[], Teacher],
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The app; store and teacher are opened in the background once it has started.

    `on_failure` is called when either cannot be opened, or some seconds after the teacher's engine died;
    `app.state.readiness.failure` then holds the reason.
    """
    metrics, readiness = Metrics(), Readiness()

    def open_service() -> Service:
        store = open_store(settings.store, seal_bytes=settings.seal_bytes, mantissa_bits=settings.mantissa_bits)
        try:
            service = Service(load_teacher(), store, settings, metrics)
        except BaseException:
            store.close()
            raise
        # Else the garbage collector goes through all that the engine imported, now and then and for tenths of a second.
        gc.collect()
        gc.freeze()
        return service

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(readiness.load(open_service, on_failure))
        watching = asyncio.create_task(readiness.watch(loading, on_failure))
        yield
        readiness.draining = True
        await loading
        watching.cancel()
        if readiness.service:
            await readiness.service.close()
        gc.unfreeze()

    app = FastAPI(title="tvkd", summary="Per-token teacher values for preference distillation", lifespan=lifespan)
    app.state.keys = keys = Keys(settings.bearer_token(), settings.api_keys)
    app.state.metrics = metrics
    app.state.request_seconds = settings.request_seconds
    app.state.readiness = readiness
    app.add_middleware(Exchange, max_bytes=settings.max_request_bytes, readiness=readiness, metrics=metrics)
    if settings.otlp_endpoint is not None:
        send_traces(app, metrics, settings.otlp_endpoint)
    problem.install(app)
    app.include_router(routes.v1, dependencies=[Depends(routes.authorized)] if keys else [])
    app.include_router(routes.operations)
    app.include_router(page)
    return app
