"""Errors as `application/problem+json` (RFC 9457), each with a stable code."""

import logging
import math

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tvkd_shared.errors import TVKDError
from tvkd_shared.wire import Problem

logger = logging.getLogger(__name__)

CODE = "tvkd.problem"
"""Where a problem notes its code in the ASGI scope, for whoever counts outcomes."""

_HTTP_CODES = {400: "invalid-request", 404: "not-found", 405: "method-not-allowed"}


def problem_response(error: TVKDError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _ProblemResponse(problem_of(error), headers)


def problem_of(error: BaseException) -> Problem:
    """An error as it is told. A fault's details stay in the log."""
    if isinstance(error, TVKDError):
        return _problem(error.status, error.code, error.message)
    return _problem(500, "internal-error", "an unexpected fault; the server's log has the details")


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(title=code.replace("-", " ").capitalize(), status=status, detail=detail, code=code)


class _ProblemResponse(Response):
    media_type = "application/problem+json"

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.model_dump_json(), problem.status, headers)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CODE] = self._code
        await super().__call__(scope, receive, send)


def unread(request: Request) -> Response:
    """The answer to a client that has left."""
    request.scope[CODE] = "disconnected"
    return Response(status_code=499)


def install(app: FastAPI) -> None:
    """Every error that leaves the app does so as a problem; a fault's details stay in the log."""

    @app.exception_handler(TVKDError)
    async def _on_purpose(_request: Request, error: TVKDError) -> Response:
        if error.status >= 500 and error.retry_after is None:
            logger.error("%s: %s", error.code, error)
        return problem_response(error)

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(error.status_code, "invalid-request")
        return _ProblemResponse(_problem(error.status_code, code, str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)  # while its body was read
    async def _left(request: Request, _error: ClientDisconnect) -> Response:
        return unread(request)

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _ProblemResponse(problem_of(error))
