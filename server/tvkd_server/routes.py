"""The HTTP interface: what is asked of whom. The work is done by the service."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tvkd_server.keys import Client, Keys
from tvkd_server.media_types import ARROW, JSON, codec_of_answer, codec_of_request
from tvkd_server.pair import PairAnswer, PairRequest, pair
from tvkd_server.problem import unread
from tvkd_server.service import Service
from tvkd_server.streaming import streamed
from tvkd_server.waiting import convert, in_time, while_connected
from tvkd_shared import arrow_codec, json_codec
from tvkd_shared.errors import BY_CODE, InvalidRequest, Unauthorized
from tvkd_shared.json_codec import answer_model
from tvkd_shared.wire import PotentialsRequest, Problem, StoreInfo, TeacherInfo, Vocabulary

PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {error.status: PROBLEM for error in BY_CODE.values()}

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def authorized(request: Request, credentials: Credentials) -> None:
    """Note whose key the request carries. Raises Unauthorized when the server does not know it."""
    keys: Keys = request.app.state.keys
    client = keys.client(credentials.credentials) if credentials else None
    if client is None:
        raise Unauthorized("send an API key of the server as `Authorization: Bearer …`")
    request.state.client = client


async def asking_client(request: Request) -> Client:
    """Who asks: the key's name and rights, or the address where no key has a name."""
    client: Client = getattr(request.state, "client", Client())
    return client if client.name or not request.client else replace(client, name=request.client.host)


async def ready_service(request: Request) -> Service:
    service: Service = request.app.state.readiness.ready_service()
    return service


Ready = Annotated[Service, Depends(ready_service)]

v1 = APIRouter(prefix="/v1", responses=PROBLEMS)
operations = APIRouter()


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with its definitions where they are referred to: OpenAPI keeps them in another place."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(part, definitions) for name, part in schema.items() if name != "$defs"}


def _schema(model: type[BaseModel]) -> Any:
    schema = model.model_json_schema()
    return _inlined(schema, schema.get("$defs", {}))


async def _body(request: Request) -> bytes:
    """The body, which is refused before it is read if it is compressed: its size after reading has no bound."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        detail = f"Content-Encoding is `{coding}`; send the body as it is, without this header"
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})
    return await request.body()


_STREAM = {"schema": {"type": "string", "format": "binary", "description": "Arrow IPC stream, see docs/server.md"}}
_REQUEST = {"content": {JSON: {"schema": _schema(PotentialsRequest)}, ARROW: _STREAM}, "required": True}


@v1.post(
    "/potentials",
    response_class=Response,
    responses={200: {"model": answer_model(), "content": {ARROW: _STREAM}}, 400: PROBLEM, 415: PROBLEM},
    openapi_extra={"requestBody": _REQUEST},
)
async def potentials(request: Request, service: Ready, client: Annotated[Client, Depends(asking_client)]) -> Response:
    """Values of each completion after each prompt: from the store, else from the teacher and then stored."""
    body = await _body(request)
    reading = codec_of_request(request.headers.get("content-type", ""))
    writing = codec_of_answer(request.headers.get("accept", ""))
    question: PotentialsRequest = await convert(request, "decode", reading.decode_request, body, len(body))
    if question.stream:
        if writing is not arrow_codec:
            raise InvalidRequest(f"stream: true is answered as Arrow: send `Accept: {ARROW}`, or leave it out")
        return await streamed(request, service, question, client)
    answering = service.potentials(question, client)
    answer = await in_time(request, answering if question.return_ == "digests" else while_connected(request, answering))
    if answer is None:
        return unread(request)
    content = await convert(request, "encode", writing.encode_answer, answer, len(body))
    return Response(content, media_type=writing.MEDIA_TYPE)


@v1.post(
    "/shaping",
    response_class=Response,
    responses={200: {"model": PairAnswer}, 400: PROBLEM, 415: PROBLEM},
    openapi_extra={"requestBody": {"content": {JSON: {"schema": _schema(PairRequest)}}, "required": True}},
)
async def shaping(request: Request, service: Ready, client: Annotated[Client, Depends(asking_client)]) -> Response:
    """One pair, token by token: values, ψ by any choice of shaping, and the margin. The page at `/` draws this."""
    body = await _body(request)
    if codec_of_request(request.headers.get("content-type", "")) is not json_codec:
        raise InvalidRequest(f"Content-Type is {ARROW}; send `{JSON}`, since a pair is text")
    question = await convert(request, "decode", partial(json_codec.decode, PairRequest), body, len(body))
    answer = await in_time(request, while_connected(request, pair(service, question, client)))
    if answer is None:
        return unread(request)
    content = await convert(request, "encode", PairAnswer.model_dump_json, answer, len(body))
    return Response(content, media_type=JSON)


@v1.get("/teacher")
async def teacher(service: Ready) -> TeacherInfo:
    """Who answers, and what is kept beside its id."""
    return service.teacher.info


@v1.get("/vocabulary")
async def vocabulary(service: Ready) -> Vocabulary:
    """Which token each id stands for: what a student is compared with whose vocabulary is not the same."""
    return Vocabulary(tokens=await asyncio.to_thread(service.teacher.tokenizer.vocabulary))


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
async def show_metrics(request: Request) -> Response:
    """Counters and times, for Prometheus."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
