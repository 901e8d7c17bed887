"""Client of a tvkd server for programs without an event loop, and for threads."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal, TypedDict, Unpack

import httpx

from tvkd_client.async_http import AsyncTeacherClient, Streamed
from tvkd_client.batches import FillCount
from tvkd_client.network import Threads, run
from tvkd_shared.record import Record
from tvkd_shared.text import TokenizedItem
from tvkd_shared.wire import ItemAnswer, StoreInfo, TeacherInfo, TextItem, TokenItem


class ClientSettings(TypedDict, total=False):
    """What may be given to a client beside the URL; `AsyncTeacherClient` has the defaults."""

    api_key: str | None
    timeout: float
    teacher_id: str | None
    request_tokens: int
    in_flight: int
    patience: float
    transport: httpx.BaseTransport | None


class TeacherClient:
    """Client of one server and one teacher: `AsyncTeacherClient`, blocking.

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

    def __init__(self, url: str, **settings: Unpack[ClientSettings]) -> None:
        self._client = AsyncTeacherClient(url, **settings, network=Threads)

    @property
    def url(self) -> str:
        return self._client.url

    @property
    def teacher_id(self) -> str | None:
        """The only teacher that is accepted; None before the first answer, if none was named."""
        return self._client.teacher_id

    def stop(self) -> None:
        """Make calls under way in other threads give up at their next failure, or now if they wait for the next try."""
        self._client.stop()

    def teacher(self) -> TeacherInfo:
        """`GET /v1/teacher`. Raises TeacherMismatch, or WrongAnswer when the server defines a value otherwise."""
        return run(self._client.teacher())

    def vocabulary(self) -> list[str | None]:
        """`GET /v1/vocabulary`: the token of each id of the teacher's tokenizer."""
        return run(self._client.vocabulary())

    def store(self) -> StoreInfo:
        """`GET /v1/store`."""
        return run(self._client.store())

    def potentials(
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
        return run(self._client.potentials(items, temperatures=temperatures, cache=cache))

    def text_potentials(
        self,
        items: Sequence[TextItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> list[ItemAnswer]:
        """As `potentials`, of text: each completion's record with its tokens and their ends in the text.

        The teacher's own tokenizer and chat template are used. Raises as `potentials` does.
        """
        return run(self._client.text_potentials(items, temperatures=temperatures, cache=cache))

    def tokenize(self, items: Sequence[TextItem]) -> list[TokenizedItem]:
        """The teacher's tokens of text and their ends. Nothing is computed. Raises as `potentials` does."""
        return run(self._client.tokenize(items))

    def stream(
        self,
        items: Iterable[TokenItem],
        *,
        temperatures: Sequence[float] = (1.0,),
        cache: Literal["use", "only", "skip"] = "use",
    ) -> Generator[Streamed, None, None]:
        """As `potentials`, item by item: its index and its records, as soon as the server has them, in any order.

        Items are drawn as they are sent. An answer that is cut off is asked for again without what came. An error ends
        the iteration; of one that concerns a single item, the others of its request come first. Raises as `potentials`.
        """
        answers = self._client.stream(items, temperatures=temperatures, cache=cache)
        try:
            while True:
                yield run(anext(answers))
        except StopAsyncIteration:
            return
        finally:
            run(answers.aclose())

    def fill(
        self,
        items: Iterable[TokenItem],
        temperatures: Sequence[float] = (1.0,),
        progress: Callable[[FillCount], None] | None = None,
    ) -> int:
        """Have the values computed and stored, without receiving them. Returns how many were not stored before.

        `progress` is called in this thread after each answered request. Items are drawn as they are sent.
        Raises as `potentials` does.
        """
        return run(self._client.fill(items, temperatures, progress))
