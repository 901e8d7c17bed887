"""When to ask again: which failures pass, how long to wait, and what an error answer says."""

import ssl
from collections.abc import Awaitable, Callable

import httpx
from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random

from tvkd_shared.errors import (
    BY_CODE,
    Overloaded,
    PayloadTooLarge,
    StoreUnavailable,
    TeacherUnavailable,
    TVKDError,
    Unauthorized,
    WrongAnswer,
)
from tvkd_shared.wire import Problem


class ProxyUnavailable(TeacherUnavailable):
    """A 502, 503 or 504 in a proxy's own words: the server behind it gave no answer."""


# A read timeout is not among them: the teacher has had the whole of `timeout`, and asking again would double its load.
_NO_ANSWER = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
# What a proxy in front of the server answers in its own words.
_BY_STATUS: dict[int, type[TVKDError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: PayloadTooLarge,
    429: Overloaded,
    502: ProxyUnavailable,
    503: ProxyUnavailable,
    504: ProxyUnavailable,
}
_backoff = wait_exponential(multiplier=0.5, max=15) + wait_random(0, 0.5)
_spread = wait_random(0, 0.5)


def retrying(
    patience: float, sleep: Callable[[float], Awaitable[None]], before_sleep: Callable[[RetryCallState], None]
) -> AsyncRetrying:
    """Repeats a call whose failure may pass, until `patience` seconds after the first one, then raises the last.

    When `sleep` ends early, the call is made once more, and has to see itself whether it was given up.
    """
    return AsyncRetrying(
        retry=retry_if_exception(passes),
        wait=_wait,
        stop=_patience(patience),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )


def passes(error: BaseException) -> bool:
    """No answer, a full queue, or an outage of which the server says, by Retry-After, that waiting helps."""
    if isinstance(error, TeacherUnavailable | StoreUnavailable):
        return error.retry_after is not None or isinstance(error, ProxyUnavailable)
    return isinstance(error, (*_NO_ANSWER, Overloaded)) and untrusted_certificate(error) is None


def _wait(state: RetryCallState) -> float:
    """Seconds to the next attempt: what the server asked for, slightly spread, else exponential with jitter."""
    error = state.outcome and state.outcome.exception()
    if isinstance(error, TVKDError) and error.retry_after is not None:
        return error.retry_after + _spread(state)
    return _backoff(state)


def _patience(seconds: float) -> Callable[[RetryCallState], bool]:
    """Stop before a wait that would end later than `seconds` after the first failure; work before it does not count."""
    first_failure: float | None = None

    def stop(state: RetryCallState) -> bool:
        nonlocal first_failure
        now = state.outcome_timestamp or 0.0
        first_failure = now if first_failure is None else first_failure
        return now + state.upcoming_sleep - first_failure > seconds

    return stop


def untrusted_certificate(error: BaseException | None) -> str | None:
    """Why a connection's certificate was refused, which asking again does not change; None for another error."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__  # httpcore names no cause
    return None if error is None else error.verify_message


def answered_error(response: httpx.Response) -> TVKDError:
    """The error that an answer other than 200 carries, of the same class as was raised at the server."""
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if after.isdecimal() else None
    where = f"{response.request.method} {response.request.url}"
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        kind = _BY_STATUS.get(response.status_code, WrongAnswer)
        said = f"{response.status_code} {response.reason_phrase}".strip()
        return kind(f"{where} answered {said} and no reason; is it a tvkd server?", retry_after=retry_after)
    return error_of(problem, retry_after, where)


def error_of(problem: Problem, retry_after: float | None, where: str) -> TVKDError:
    """The error that a problem tells of."""
    if problem.code not in BY_CODE:
        return TVKDError(f"{where} answered {problem.status}: {problem.detail}", retry_after=retry_after)
    return BY_CODE[problem.code](problem.detail, retry_after=retry_after)
