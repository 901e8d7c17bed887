"""Counts every potentials request by its outcome, whatever answered it: the service, a check, the limit, the key."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tvkd_server.metrics import Metrics
from tvkd_server.problem import CODE


class Metering:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/potentials":
            await self.app(scope, receive, send)
            return
        started, outcome = time.perf_counter(), "disconnected"

        async def noting_send(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = scope.get(CODE, "ok")
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except Exception:
            outcome = "internal-error"
            raise
        finally:
            self.metrics.requests.labels(outcome).inc()
            self.metrics.request_seconds.observe(time.perf_counter() - started)
