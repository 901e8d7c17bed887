"""Sends one request until it is answered, its error stands, or the call that it belongs to was given up."""

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import Any, TypeVar

import httpx
from tenacity import RetryCallState

from tvkd_client.network import Network
from tvkd_client.retry import answered_error, error_of, retrying, untrusted_certificate
from tvkd_shared import arrow_codec
from tvkd_shared.arrow_stream import AnswerReader, Part
from tvkd_shared.errors import InvalidRequest, Overloaded, TeacherUnavailable, WrongAnswer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Sender:
    def __init__(self, url: str, network: Network, timeout: float, patience: float) -> None:
        self._url, self._network, self._timeout, self._patience = url, network, timeout, patience
        self._under_way: set[Event] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_under_way": set()}

    def stop(self) -> None:
        for given_up in tuple(self._under_way):
            given_up.set()

    @contextmanager
    def call(self) -> Iterator[Event]:
        """An event that ends the waits of a call's threads: set by `stop`, and when an error or Ctrl-C ends it."""
        given_up = Event()
        self._under_way.add(given_up)
        try:
            yield given_up
        except BaseException:
            given_up.set()
            raise
        finally:
            self._under_way.discard(given_up)

    async def send(
        self, method: str, path: str, given_up: Event, body: bytes | None = None, media: str | None = None
    ) -> httpx.Response:
        """The answer, of status 200. Raises the errors of `tvkd_shared.errors`."""

        async def ask() -> httpx.Response:
            self._check(given_up)
            response = await self._network.request(method, self._url + path, **_content(body, media))
            if response.status_code != httpx.codes.OK:
                raise answered_error(response)
            return response

        return await self.persist(ask, given_up)

    async def parts(
        self, path: str, given_up: Event, body: bytes, columns: tuple[str, ...]
    ) -> AsyncGenerator[Part, None]:
        """The parts of a streamed answer as they come, asked for once, for `persist`. Raises when any is lacking."""
        self._check(given_up)
        reader = AnswerReader(columns)
        content = _content(body, arrow_codec.MEDIA_TYPE)
        async with self._network.stream("POST", self._url + path, **content) as pieces:
            async for piece in pieces:
                self._check(given_up)
                try:
                    parts = list(reader.feed(piece))
                except ValueError as error:
                    raise self.wrong(path, error) from error
                for part in parts:
                    if part.problem is not None:
                        raise error_of(part.problem, part.retry_after, f"POST {self._url}{path}")
                    yield part
        if not reader.ended:
            raise httpx.RemoteProtocolError("the answer was cut off")

    async def persist(self, ask: Callable[[], Awaitable[Result]], given_up: Event) -> Result:
        """Ask until it is answered. Raises TeacherUnavailable when the server is not reached, or is too slow."""
        attempts = retrying(self._patience, partial(self._network.sleep, given_up), self._log_retry)
        try:
            result: Result = await attempts(ask)
            return result
        except httpx.TimeoutException as error:
            raise TeacherUnavailable(
                f"{self._url} did not answer within {self._timeout:g} s: ask for less at once, or wait longer"
            ) from error
        except httpx.RequestError as error:
            if untrusted := untrusted_certificate(error):
                raise InvalidRequest(
                    f"{self._url} has a certificate that is not trusted: {untrusted}; if a private authority made it, "
                    "or the server itself, set SSL_CERT_FILE to the authority's PEM file"
                ) from error
            cause = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise TeacherUnavailable(f"cannot reach {self._url}: {cause}; is `tvkd serve` running there?") from error

    def wrong(self, path: str, error: ValueError) -> WrongAnswer:
        return WrongAnswer(f"{self._url}{path} sent a wrong answer: {error}; is it a tvkd server?")

    def _check(self, given_up: Event) -> None:
        if given_up.is_set():
            raise TeacherUnavailable(f"{self._url} was not asked: the call was given up")

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        # Back-pressure is the server's normal way of saying "later"; an unreachable server is news, once.
        level = logging.DEBUG if isinstance(error, Overloaded) or state.attempt_number > 1 else logging.WARNING
        logger.log(level, "%s: %s; trying again for up to %g s", self._url, error, self._patience)


def _content(body: bytes | None, media: str | None) -> dict[str, Any]:
    headers = {"Content-Type": media, "Accept": arrow_codec.MEDIA_TYPE} if media else {}
    return {"content": body, "headers": headers}
