"""Client of a tvkd server: asks, retries what passes, and checks every answer before it becomes a value."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState

from tvkd_client.batches import Filled, in_order, split, tokens_of
from tvkd_client.retry import answered_error, retrying
from tvkd_shared.errors import (
    InvalidRequest,
    Overloaded,
    TeacherMismatch,
    TeacherUnavailable,
    WrongAnswer,
)
from tvkd_shared.key import VALUE_DEFINITION, completion_keys
from tvkd_shared.record import Record
from tvkd_shared.wire import (
    CompletionAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    StoreInfo,
    TeacherInfo,
    TokenItem,
    first_mistake,
)

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

REQUEST_TOKENS = 8192
"""Tokens in one request: some seconds of a large teacher, so that progress shows and a lost request costs little."""


class TeacherClient:
    """Client of one server and one teacher.

    Connections open at the first request of each process, so that a client can be pickled and forked; several threads
    may use one. The first answer's teacher, or `teacher_id`, is the only one accepted from then on.

    api_key         bearer token; default: TVKD_API_KEY
    timeout         seconds to wait for one answer
    request_tokens  tokens in one request; a single item that holds more goes alone
    in_flight       requests of one call that are under way at once
    patience        seconds from a request's first failure to giving up
    transport       httpx transport in place of TCP

    Raises InvalidRequest when the URL is not one.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        teacher_id: str | None = None,
        request_tokens: int = REQUEST_TOKENS,
        in_flight: int = 4,
        patience: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not re.match(r"https?://[^/]", url):
            raise InvalidRequest(f"server {url!r} is not a URL such as http://127.0.0.1:8077")
        self.url = url.rstrip("/")
        self.teacher_id = teacher_id
        self.request_tokens = request_tokens
        self.in_flight = in_flight
        self._api_key = os.environ.get("TVKD_API_KEY") if api_key is None else api_key
        self._timeout = timeout
        self._patience = patience
        self._transport = transport
        self._opened: dict[int, httpx.Client] = {}
        self._under_way: set[Event] = set()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}, "_under_way": set()}

    def __del__(self) -> None:
        # A thread that still waits for an answer holds the client, so no request is cut off.
        for process, opened in getattr(self, "_opened", {}).items():
            if process == os.getpid():
                opened.close()

    def stop(self) -> None:
        """Make calls under way in other threads give up at their next failure, or now if they wait for the next try."""
        for left in tuple(self._under_way):
            left.set()

    @contextmanager
    def _call(self) -> Iterator[Event]:
        """An event that ends the waits of a call's threads: set by `stop`, and when an error or Ctrl-C ends it."""
        left = Event()
        self._under_way.add(left)
        try:
            yield left
        except BaseException:
            left.set()
            raise
        finally:
            self._under_way.discard(left)

    def teacher(self) -> TeacherInfo:
        """`GET /v1/teacher`. Raises TeacherMismatch, or WrongAnswer when the server defines a value otherwise."""
        with self._call() as left:
            info = self._ask("GET", "/v1/teacher", TeacherInfo, left)
        self._check_teacher(info.id)
        if info.value_definition != VALUE_DEFINITION:
            raise WrongAnswer(
                f"{self.url} computes value definition {info.value_definition}, this client reads {VALUE_DEFINITION}: "
                "install the same tvkd on both sides"
            )
        return info

    def store(self) -> StoreInfo:
        """`GET /v1/store`."""
        with self._call() as left:
            return self._ask("GET", "/v1/store", StoreInfo, left)

    def potentials(
        self,
        items: Sequence[TokenItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> list[list[Record]]:
        """Record of each completion of each item, at every temperature asked for and at 1.0.

        Raises the errors of `tvkd_shared.errors`: those that the server answers, TeacherUnavailable when it cannot be
        reached, WrongAnswer when an answer does not fit its question.
        """
        asked = _with_one(temperatures)

        with self._call() as left:

            def ask(batch: tuple[int, list[TokenItem]]) -> list[list[Record]]:
                first, part = batch
                rows = self._potentials(first, part, asked, left, cache=cache, return_="values")
                return [
                    [self._scored(one, asked, first + i, j) for j, one in enumerate(row)] for i, row in enumerate(rows)
                ]

            batches = list(split(items, self.request_tokens))
            if len(batches) == 1:
                return ask(batches[0])
            return [row for rows in in_order(ask, batches, self.in_flight) for row in rows]

    def fill(
        self,
        items: Iterable[TokenItem],
        temperatures: Sequence[float] = (1.0,),
        progress: Callable[[Filled], None] | None = None,
    ) -> int:
        """Have the values computed and stored, without receiving them. Returns how many were not stored before.

        `progress` is called in this thread after each answered request, in order. Items are drawn as they are sent.
        Raises as `potentials` does.
        """
        asked = _with_one(temperatures)
        computed = 0
        with self._call() as left:

            def ask(batch: tuple[int, list[TokenItem]]) -> Filled:
                first, part = batch
                rows = self._potentials(first, part, asked, left, cache="use", return_="digests")
                answers = [one for row in rows for one in row]
                tokens = sum(map(tokens_of, part))
                return Filled(len(answers), tokens, sum(not one.cached for one in answers))

            for filled in in_order(ask, split(items, self.request_tokens), self.in_flight):
                computed += filled.computed
                if progress is not None:
                    progress(filled)
        return computed

    def _potentials(
        self,
        first: int,
        items: list[TokenItem],
        temperatures: list[float],
        left: Event,
        *,
        cache: Literal["use", "only", "skip"],
        return_: Literal["values", "digests"],
    ) -> list[list[CompletionAnswer]]:
        """One request, its answer checked up to the numbers. `first` is the index of items[0] in the caller's list."""
        try:
            request = PotentialsRequest(
                temperatures=temperatures,
                entropy=return_ == "values",
                teacher_id=self.teacher_id,
                cache=cache,
                return_=return_,
                items=items,
            )
        except ValidationError as error:
            raise InvalidRequest(first_mistake(error.errors())) from error
        body = request.model_dump_json(by_alias=True, exclude_none=True)
        answer = self._ask("POST", "/v1/potentials", PotentialsAnswer, left, body)
        self._check_teacher(answer.teacher_id)
        if answer.temperatures != temperatures:
            raise WrongAnswer(f"{self.url}: temperatures {answer.temperatures} came, {temperatures} were asked for")
        if len(answer.items) != len(items):
            raise WrongAnswer(f"{self.url}: {len(answer.items)} items came, {len(items)} were asked for")
        rows = [item.completions for item in answer.items]
        for i, (item, row) in enumerate(zip(items, rows, strict=True), first):
            self._check_item(answer.teacher_id, item, row, i)
        return rows

    def _check_item(self, teacher: str, item: TokenItem, row: list[CompletionAnswer], i: int) -> None:
        if len(row) != len(item.completions):
            raise WrongAnswer(
                f"{self.url}: items[{i}]: {len(row)} completions came, {len(item.completions)} were asked"
            )
        keys = completion_keys(teacher, item.prompt_token_ids, item.completions)
        for j, (answer, key, completion) in enumerate(zip(row, keys, item.completions, strict=True)):
            if answer.key != key.hex():
                raise self._wrong(i, j, f"key {answer.key} came; its tokens have key {key.hex()}")
            if answer.length != len(completion):
                raise self._wrong(i, j, f"length {answer.length} came; it has {len(completion)} tokens")

    def _scored(self, answer: CompletionAnswer, temperatures: list[float], i: int, j: int) -> Record:
        try:
            return answer.scored(temperatures)
        except ValueError as error:
            raise self._wrong(i, j, str(error)) from error

    def _wrong(self, i: int, j: int, what: str) -> WrongAnswer:
        return WrongAnswer(f"{self.url}: items[{i}].completions[{j}]: {what}")

    def _check_teacher(self, answering: str) -> None:
        if self.teacher_id is None:
            self.teacher_id = answering
        elif self.teacher_id != answering:
            raise TeacherMismatch(f"{self.url} answers with teacher {answering}; {self.teacher_id} was asked for")

    def _ask(self, method: str, path: str, model: type[Model], left: Event, body: str | None = None) -> Model:
        response = self._send(method, path, left, body)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise WrongAnswer(
                f"{self.url}{path} sent what is no {model.__name__}: {first_mistake(error.errors())}; "
                "is it a tvkd server?"
            ) from error

    def _send(self, method: str, path: str, left: Event, body: str | None) -> httpx.Response:
        attempts = retrying(self._patience, left, self._log_retry)
        try:
            return attempts(self._send_once, method, path, left, body)
        except httpx.TimeoutException as error:
            raise TeacherUnavailable(
                f"{self.url} did not answer within {self._timeout:g} s: ask for less at once, or wait longer"
            ) from error
        except httpx.RequestError as error:
            cause = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise TeacherUnavailable(f"cannot reach {self.url}: {cause}; is `tvkd serve` running there?") from error

    def _send_once(self, method: str, path: str, left: Event, body: str | None) -> httpx.Response:
        if left.is_set():
            raise TeacherUnavailable(f"{self.url} was not asked: the call was given up")
        response = self._connections().request(method, self.url + path, content=body)
        if response.status_code != httpx.codes.OK:
            raise answered_error(response)
        return response

    def _connections(self) -> httpx.Client:
        """This process's connections: after a fork the parent's are left alone, its sockets are not ours to use."""
        opened = self._opened.get(os.getpid())
        if opened is not None:
            return opened
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        new = httpx.Client(
            headers=headers, timeout=httpx.Timeout(self._timeout, connect=10, pool=None), transport=self._transport
        )
        # setdefault is atomic: of two threads that come here at once, one client is kept and the other never connects.
        return self._opened.setdefault(os.getpid(), new)

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        # Back-pressure is the server's normal way of saying "later"; an unreachable server is news, once.
        level = logging.DEBUG if isinstance(error, Overloaded) or state.attempt_number > 1 else logging.WARNING
        logger.log(level, "%s: %s; trying again for up to %g s", self.url, error, self._patience)


def _with_one(temperatures: Sequence[float]) -> list[float]:
    return list(dict.fromkeys((1.0, *map(float, temperatures))))
