"""The body of both clients: asks, retries what passes, and checks every answer before it becomes a value."""

import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from operator import itemgetter
from threading import Event
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from tvkd_client.answer import as_arrays, checked_items, checked_part, tokenized
from tvkd_client.batches import AnyItem, FillCount, split, tokens_of
from tvkd_client.network import Loop, Network, Tell, Threads, as_told
from tvkd_client.retry import passes
from tvkd_client.sender import Sender
from tvkd_shared import arrow_codec, json_codec
from tvkd_shared.arrow_stream import Part
from tvkd_shared.errors import InvalidRequest, TeacherMismatch, WrongAnswer
from tvkd_shared.key import VALUE_DEFINITION
from tvkd_shared.record import Record
from tvkd_shared.text import TokenizedItem
from tvkd_shared.wire import (
    ItemAnswer,
    PotentialsAnswer,
    RequestOptions,
    StoreInfo,
    TeacherInfo,
    TextItem,
    TokenItem,
    Vocabulary,
    first_mistake,
)

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
Streamed = tuple[int, list[Record]]

REQUEST_TOKENS = 8192
"""Tokens in one request: some seconds of a large teacher, so that progress shows and a lost request costs little."""


class AsyncTeacherClient:
    """Client of one server and one teacher, for programs on asyncio; `TeacherClient` is the same for all others.

    Connections open at the first request, one set for each event loop. `async with` or `close` closes those of the
    running one. The first answer's teacher, or `teacher_id`, is the only one accepted from then on.

    api_key         bearer token; default: TVKD_API_KEY
    timeout         seconds to wait for one answer
    request_tokens  tokens in one request; a single item that holds more goes alone
    in_flight       requests of one call that are under way at once
    patience        seconds from a request's first failure to giving up
    transport       httpx transport in place of TCP
    network         how it waits: `Threads` is for `TeacherClient`

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
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
        network: type[Loop | Threads] = Loop,
    ) -> None:
        if not re.match(r"https?://[^/]", url):
            raise InvalidRequest(f"server {url!r} is not a URL such as http://127.0.0.1:8077")
        self.url = url.rstrip("/")
        self.teacher_id = teacher_id
        self.request_tokens = request_tokens
        self.in_flight = in_flight
        api_key = os.environ.get("TVKD_API_KEY") if api_key is None else api_key
        self._network: Network = network(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=10, pool=None),
            transport=transport,
        )
        self._sender = Sender(self.url, self._network, timeout, patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. They open again at the next request."""
        await self._network.close()

    def stop(self) -> None:
        """Make calls under way give up at their next failure. What is awaited is better cancelled."""
        self._sender.stop()

    async def teacher(self) -> TeacherInfo:
        """`GET /v1/teacher`. Raises TeacherMismatch, or WrongAnswer when the server defines a value otherwise."""
        info = await self._get("/v1/teacher", TeacherInfo)
        self._check_teacher(info.id)
        if info.value_definition != VALUE_DEFINITION:
            raise WrongAnswer(
                f"{self.url} computes value definition {info.value_definition}, this client reads {VALUE_DEFINITION}: "
                "install the same tvkd on both sides"
            )
        return info

    async def vocabulary(self) -> list[str | None]:
        """`GET /v1/vocabulary`: the token of each id of the teacher's tokenizer."""
        return (await self._get("/v1/vocabulary", Vocabulary)).tokens

    async def store(self) -> StoreInfo:
        """`GET /v1/store`."""
        return await self._get("/v1/store", StoreInfo)

    async def potentials(
        self,
        items: Sequence[TokenItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> list[list[Record]]:
        """The record of each completion of each item, at every temperature asked for and at 1.0.

        Raises the errors of `tvkd_shared.errors`: those that the server answers, TeacherUnavailable when it cannot be
        reached, WrongAnswer when an answer does not fit its request.
        """
        answers = await self._answers(items, self._options(temperatures, cache=cache, entropy=True))
        return [[row.record for row in item.completions if row.record is not None] for item in answers]

    async def text_potentials(
        self,
        items: Sequence[TextItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> list[ItemAnswer]:
        """As `potentials`, of text: each completion's record with its tokens and their ends in the text.

        The teacher's own tokenizer and chat template are used. Raises as `potentials` does.
        """
        return await self._answers(items, self._options(temperatures, cache=cache, entropy=True))

    async def tokenize(self, items: Sequence[TextItem]) -> list[TokenizedItem]:
        """The teacher's tokens of text and their ends. Nothing is computed. Raises as `potentials` does."""
        return [tokenized(item) for item in await self._answers(items, self._options((1.0,), return_="tokens"))]

    async def _answers(self, items: Sequence[AnyItem], options: RequestOptions) -> list[ItemAnswer]:
        with self._sender.call() as given_up:

            async def ask(batch: tuple[int, list[AnyItem]], tell: Tell[tuple[int, list[ItemAnswer]]]) -> None:
                tell((batch[0], await self._potentials(*batch, options, given_up)))

            batches = list(split(items, self.request_tokens))
            if len(batches) == 1:
                return await self._potentials(*batches[0], options, given_up)
            async with aclosing(as_told(self._network, ask, batches, self.in_flight)) as answered:
                parts = [part async for part in answered]
        return [answer for _, part in sorted(parts, key=itemgetter(0)) for answer in part]

    async def stream(
        self,
        items: Iterable[TokenItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> AsyncGenerator[Streamed, None]:
        """As `potentials`, item by item: its index and its records, as soon as the server has them, in any order.

        Items are drawn as they are sent. An answer that is cut off is asked for again without what came. An error ends
        the iteration; of one that concerns a single item, the others of its request come first. Raises as `potentials`.
        """
        options = self._options(temperatures, cache=cache, entropy=True, stream=True)
        with self._sender.call() as given_up:

            async def ask(batch: tuple[int, list[TokenItem]], tell: Tell[Streamed]) -> None:
                await self._stream(*batch, options, given_up, tell)

            batches = split(items, self.request_tokens)
            async with aclosing(as_told(self._network, ask, batches, self.in_flight)) as answers:
                async for answer in answers:
                    yield answer

    async def fill(
        self,
        items: Iterable[TokenItem],
        temperatures: Sequence[float] = (1.0,),
        progress: Callable[[FillCount], None] | None = None,
    ) -> int:
        """Have the values computed and stored, without receiving them. Returns how many were not stored before.

        `progress` is called in this thread after each answered request. Items are drawn as they are sent.
        Raises as `potentials` does.
        """
        options = self._options(temperatures, return_="digests")
        computed = 0
        with self._sender.call() as given_up:

            async def ask(batch: tuple[int, list[TokenItem]], tell: Tell[FillCount]) -> None:
                answers = await self._potentials(*batch, options, given_up)
                rows = [row for item in answers for row in item.completions]
                tell(FillCount(len(rows), sum(map(tokens_of, batch[1])), sum(not row.cached for row in rows)))

            batches = split(items, self.request_tokens)
            async with aclosing(as_told(self._network, ask, batches, self.in_flight)) as counts:
                async for count in counts:
                    computed += count.computed
                    if progress is not None:
                        progress(count)
        return computed

    def _options(self, temperatures: Sequence[float], **options: Any) -> RequestOptions:
        try:
            return RequestOptions(temperatures=list(dict.fromkeys((1.0, *map(float, temperatures)))), **options)
        except ValidationError as error:
            raise InvalidRequest(first_mistake(error.errors())) from error

    async def _potentials(
        self, first: int, items: Sequence[TokenItem | TextItem], options: RequestOptions, given_up: Event
    ) -> list[ItemAnswer]:
        """One request and its checked answer. `first` is the index of items[0] in the caller's list."""
        options = options.model_copy(update={"teacher_id": self.teacher_id})
        if texts := [item for item in items if isinstance(item, TextItem)]:
            media, body = json_codec.MEDIA_TYPE, json_codec.encode_request(options, texts)
        else:
            items = arrays = [as_arrays(item, i) for i, item in enumerate(items, first) if isinstance(item, TokenItem)]
            media, body = arrow_codec.MEDIA_TYPE, arrow_codec.encode_request(options, arrays)
        response = await self._sender.send("POST", "/v1/potentials", given_up, body, media)
        try:
            answer = arrow_codec.decode_answer(response.content, options.columns())
        except ValueError as error:
            raise self._sender.wrong("/v1/potentials", error) from error
        self._check(answer, options)
        return checked_items(answer, items, self.url, first)

    async def _stream(
        self, first: int, items: Sequence[TokenItem], options: RequestOptions, given_up: Event, tell: Tell[Streamed]
    ) -> None:
        """Tell of each item once its checked answer came. After a failure that may pass, ask for what is lacking."""
        lacking = {index: as_arrays(item, index) for index, item in enumerate(items, first)}

        async def ask() -> None:
            asked = dict(lacking)
            guarded = options.model_copy(update={"teacher_id": self.teacher_id})
            body = arrow_codec.encode_request(guarded, list(asked.values()))
            try:
                async with aclosing(self._sender.parts("/v1/potentials", given_up, body, options.columns())) as parts:
                    async for part in parts:
                        self._check(part, options)
                        for index, rows in checked_part(part, asked, self.url):
                            if lacking.pop(index, None) is None:
                                raise WrongAnswer(f"{self.url}: items[{index}] came twice")
                            tell((index, [row.record for row in rows if row.record is not None]))
                if lacking:
                    raise WrongAnswer(f"{self.url}: {len(lacking)} of {len(asked)} items did not come")
            except Exception as error:
                # What came is kept, and patience begins anew.
                if len(lacking) == len(asked) or not passes(error):
                    raise
                logger.info("%s: %s; asking again for %d of %d items", self.url, error, len(lacking), len(asked))

        while lacking:
            await self._sender.persist(ask, given_up)

    def _check(self, answer: PotentialsAnswer | Part, options: RequestOptions) -> None:
        self._check_teacher(answer.teacher_id)
        if answer.temperatures != options.temperatures:
            raise WrongAnswer(
                f"{self.url}: temperatures {answer.temperatures} came, {options.temperatures} were asked for"
            )

    def _check_teacher(self, answering: str) -> None:
        if self.teacher_id is None:
            self.teacher_id = answering
        elif self.teacher_id != answering:
            raise TeacherMismatch(f"{self.url} answers with teacher {answering}; {self.teacher_id} was asked for")

    async def _get(self, path: str, model: type[Model]) -> Model:
        with self._sender.call() as given_up:
            response = await self._sender.send("GET", path, given_up)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise WrongAnswer(
                f"{self.url}{path} sent something other than {model.__name__}: {first_mistake(error.errors())}; "
                "is it a tvkd server?"
            ) from error
