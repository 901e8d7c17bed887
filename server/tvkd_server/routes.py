"""The HTTP interface: what is asked of whom. The work is done by the service."""

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tvkd_server.service import Service
from tvkd_shared.errors import BY_CODE, Unauthorized
from tvkd_shared.wire import PotentialsAnswer, PotentialsRequest, Problem, StoreInfo, TeacherInfo

PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {error.status: PROBLEM for error in BY_CODE.values()}

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def authorized(request: Request, credentials: Credentials) -> None:
    """Raises Unauthorized when the request does not carry the server's API key."""
    token: str = request.app.state.token
    given = credentials.credentials if credentials else ""
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise Unauthorized("send the server's API key as `Authorization: Bearer …`")


async def ready_service(request: Request) -> Service:
    service: Service = request.app.state.readiness.ready_service()
    return service


Ready = Annotated[Service, Depends(ready_service)]

v1 = APIRouter(prefix="/v1", responses=PROBLEMS)
operations = APIRouter()


@v1.post("/potentials", response_model_exclude_none=True, responses={400: PROBLEM})
async def potentials(request: PotentialsRequest, service: Ready) -> PotentialsAnswer:
    """Values of each completion after each prompt: from the store, else from the teacher and then stored."""
    return await service.potentials(request)


@v1.get("/teacher")
async def teacher(service: Ready) -> TeacherInfo:
    """Who answers, and what is kept beside its id."""
    return service.teacher.info


@v1.get("/store")
async def store(service: Ready) -> StoreInfo:
    """What is kept."""
    return await service.store_info()


@operations.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@operations.get("/readyz", responses={503: PROBLEM})
async def readyz(_service: Ready) -> dict[str, str]:
    """The teacher answers: not while it loads or drains, nor when it has died."""
    return {"status": "ready"}


@operations.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and times, for Prometheus."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
