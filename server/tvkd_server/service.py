"""The way of a request: claim, look-up, admission, teacher, store, answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvkd_server.admission import Admission
from tvkd_server.flights import Claim, Flights, Landing
from tvkd_server.items import Gathering, Item, Ready
from tvkd_server.keys import Client
from tvkd_server.metrics import Metrics
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import NotFinite, Teacher, check_temperatures
from tvkd_server.turns import Asker, Turns
from tvkd_server.writer import GroupCommit
from tvkd_shared.errors import Forbidden, NotCached, PayloadTooLarge, TeacherMismatch, TVKDError
from tvkd_shared.key import completion_keys, token_array
from tvkd_shared.record import Record, column_names
from tvkd_shared.store import Store
from tvkd_shared.text import TokenizedItem
from tvkd_shared.wire import (
    ItemAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    StoreInfo,
    TextItem,
)

MAX_COMPLETIONS = 16_384
"""Completions in one request: each costs the event loop some microseconds, which other requests wait for."""

_AT_ONCE = 256
"""Prompts of one request that wait for the teacher, or are with it: as many as an engine reads side by side. To begin
and to give up each of them costs the event loop tens of microseconds."""

TokenIds = npt.NDArray[np.uint32]


@dataclass(slots=True)
class _Misses:
    """A prompt, and by key those completions after it that the teacher computes, each once in a request."""

    prompt: TokenIds
    completions: dict[bytes, TokenIds]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions.values()))


class Service:
    """Answers requests from one store, and with one teacher what the store lacks."""

    def __init__(self, teacher: Teacher, store: Store, settings: ServeSettings, metrics: Metrics) -> None:
        self.teacher = teacher
        self.store = store
        self.metrics = metrics
        self._settings = settings
        self._admission = Admission(settings.max_queued_tokens)
        self._commit = GroupCommit(store, teacher.info.id, settings)
        self._flights = Flights()
        self._turns = Turns(teacher.window)
        # Threads of its own, so that tokenising long texts keeps no look-up waiting.
        self._preparing = ThreadPoolExecutor(2, "prepare")
        metrics.queued_tokens.set_function(lambda: self._admission.queued)
        metrics.corrupt.set_function(lambda: store.corrupt)
        store.add_teacher(teacher.info.id, teacher.info.model_dump())

    async def potentials(self, request: PotentialsRequest, client: Client) -> PotentialsAnswer:
        """Answer a client's request when all of it is there. Raises as `items` does."""
        items: dict[int, ItemAnswer] = {}
        await self.items(request, client, items.update)
        in_order = [items[number] for number in range(len(items))]
        return PotentialsAnswer(self.teacher.info.id, request.temperatures, request.columns(), in_order)

    async def items(self, request: PotentialsRequest, client: Client, ready: Ready) -> None:
        """Hand on each item of a client's request as soon as it is whole.

        Raises the errors of `tvkd_shared.errors`, when all others of its items were computed, stored and handed on.
        """
        info = self.teacher.info
        if request.teacher_id not in (None, info.id):
            raise TeacherMismatch(f"teacher {request.teacher_id} was asked for; this server runs {info.id}")
        if client.read_only and request.cache == "skip":
            raise Forbidden("this API key only reads what is stored, and `cache: skip` computes: send `use` or `only`")
        with self.metrics.stage("codec", self.metrics.codec_seconds.labels("prepare")):
            items = await asyncio.get_running_loop().run_in_executor(self._preparing, self._prepare, request)
        columns = column_names(request.temperatures)
        asker = Asker(client.name, request.return_ == "digests", client.max_queued_tokens)
        gathering = Gathering(items, request, ready)
        if request.return_ == "tokens":
            ready({number: item.answer(request) for number, item in enumerate(items)})
        elif request.cache == "skip":
            await self._without_store(items, gathering, columns, asker)
        elif request.cache == "only" or client.read_only:
            reason = "this API key only reads what is stored" if client.read_only else "cache is `only`"
            await self._only_store(gathering, columns, reason)
        else:
            await self._through_store(items, gathering, columns, asker)

    def _prepare(self, request: PotentialsRequest) -> list[Item]:
        """Tokenise and check every item before the teacher sees one."""
        check_temperatures(request.temperatures)
        if (count := sum(len(item.completions) for item in request.items)) > MAX_COMPLETIONS:
            raise PayloadTooLarge(f"the request holds {count:,} completions, and {MAX_COMPLETIONS:,} fit: split it")
        most = self._settings.max_request_tokens
        items: list[Item] = []
        remaining = most
        for index, item in enumerate(request.items):
            place = f"items[{index}]"
            tokens = self._tokenize(item, remaining, place) if isinstance(item, TextItem) else item
            prompt = token_array(tokens.prompt_token_ids)
            completions = [token_array(ids) for ids in tokens.completions]
            self.teacher.check(prompt, completions, place)
            keys = completion_keys(self.teacher.info.id, prompt, completions)
            ends = tokens.ends if isinstance(tokens, TokenizedItem) else None
            items.append(Item(prompt, completions, keys, ends))
            remaining -= items[-1].size
            if remaining < 0:
                raise PayloadTooLarge(
                    f"{place}: the request holds more than {most:,} tokens, the most that fit: split it"
                )
        return items

    def _tokenize(self, item: TextItem, most: int, place: str) -> TokenizedItem:
        try:
            return self.teacher.tokenize(item, most)
        except TVKDError as error:
            raise type(error)(f"{place}: {error}") from error

    async def _only_store(self, gathering: Gathering, columns: tuple[str, ...], reason: str) -> None:
        keys = gathering.pending
        found = await self._look_up(keys, columns)
        if missing := len(keys) - len(found):
            raise NotCached(f"{missing} of {len(keys)} completions are not in the store, and {reason}")
        gathering.land(found)

    async def _through_store(
        self, items: list[Item], gathering: Gathering, columns: tuple[str, ...], asker: Asker
    ) -> None:
        # More than once only for keys whose flight another request gave up.
        while pending := gathering.pending:
            with self._flights.claim(pending, columns, gathering.land) as claim:
                await self._land(items, claim, columns, asker)
            others = await claim.others()
            self.metrics.joined.inc(sum(landing.computed for landing in others.values()))
            self.metrics.cached.inc(sum(not landing.computed for landing in others.values()))

    async def _land(self, items: list[Item], claim: Claim, columns: tuple[str, ...], asker: Asker) -> None:
        """Look the claimed keys up, and have the teacher compute what is missing; only that is admitted."""
        claim.land(await self._look_up(claim.keys, columns))
        prompts = _misses(items, claim.keys)
        with self._admission.hold(sum(misses.tokens for misses in prompts), asker):
            await _for_each(prompts, lambda misses: self._compute(misses, claim, columns, asker))

    async def _compute(self, misses: _Misses, claim: Claim, columns: tuple[str, ...], asker: Asker) -> None:
        """Compute and store; what is answered is what was stored, the same bytes then and ever after."""
        try:
            records = await self._score(misses, columns, asker)
            with self.metrics.stage("store", self.metrics.store_seconds.labels("put")):
                stored = await self._commit.put(list(zip(misses.completions, records, strict=True)))
        except NotFinite as error:
            if len(misses.completions) == 1:
                claim.fail(misses.completions, error)
                raise
            alone = [_Misses(misses.prompt, {key: ids}) for key, ids in misses.completions.items()]
            await _for_each(alone, lambda one: self._compute(one, claim, columns, asker))
        except Exception as error:
            claim.fail(misses.completions, error)
            raise
        else:
            claim.land(_landings(misses, stored))

    async def _without_store(
        self, items: list[Item], gathering: Gathering, columns: tuple[str, ...], asker: Asker
    ) -> None:
        async def compute(misses: _Misses) -> None:
            gathering.land(_landings(misses, await self._score(misses, columns, asker)))

        prompts = _misses(items, gathering.pending)
        with self._admission.hold(sum(misses.tokens for misses in prompts), asker):
            await _for_each(prompts, compute)

    async def _score(self, misses: _Misses, columns: tuple[str, ...], asker: Asker) -> list[Record]:
        async with AsyncExitStack() as with_teacher:
            with self.metrics.stage("queue", self.metrics.queue_seconds.labels(asker.work)):
                await with_teacher.enter_async_context(self._turns.turn(asker, misses.tokens))
            with self.metrics.stage("teacher", self.metrics.teacher_seconds):
                completions = [ids.tolist() for ids in misses.completions.values()]
                records = await self.teacher.score(misses.prompt.tolist(), completions, columns)
        self.metrics.teacher_tokens.inc(misses.tokens)
        self.metrics.computed.inc(len(records))
        return records

    async def _look_up(self, keys: list[bytes], columns: tuple[str, ...]) -> dict[bytes, Landing]:
        """What the store holds of the keys."""
        if not keys:
            return {}
        with self.metrics.stage("store", self.metrics.store_seconds.labels("get")):
            records = await asyncio.to_thread(self.store.get, keys, columns)
        landings = {key: Landing(record, False) for key, record in zip(keys, records, strict=True) if record}
        self.metrics.cached.inc(len(landings))
        return landings

    async def store_info(self) -> StoreInfo:
        counts = await asyncio.to_thread(self.store.counts)
        certificates = await asyncio.to_thread(self.store.certificates)
        return StoreInfo(
            sequences=counts.sequences,
            tokens=counts.tokens,
            bytes=counts.bytes,
            bytes_per_token=counts.bytes / counts.tokens if counts.tokens else 0.0,
            hits=self.metrics.count("tvkd_cached_completions_total"),
            misses=self.metrics.count("tvkd_computed_completions_total")
            + self.metrics.count("tvkd_joined_completions_total"),
            corrupt=counts.corrupt,
            mantissa_bits=self.store.format.mantissa_bits,
            certificates=certificates,
        )

    async def close(self) -> None:
        self._preparing.shutdown(wait=False, cancel_futures=True)
        await self.teacher.close()
        await asyncio.to_thread(self.store.close)


async def _for_each(prompts: Sequence[_Misses], work: Callable[[_Misses], Awaitable[None]]) -> None:
    """Work on all of them to their end, on some at once; then raise the error of the first that failed."""
    waiting = iter(enumerate(prompts))
    errors: dict[int, Exception] = {}

    async def next_ones() -> None:
        for number, misses in waiting:
            try:
                await work(misses)
            except Exception as error:
                errors[number] = error

    # With exceptions returned, also a cancellation is raised only when all have ended.
    ended = await asyncio.gather(*(next_ones() for _ in prompts[:_AT_ONCE]), return_exceptions=True)
    for error in [*(errors[number] for number in sorted(errors)), *ended]:
        if error is not None:
            raise error


def _misses(items: Sequence[Item], keys: Iterable[bytes]) -> list[_Misses]:
    """What the teacher computes for these keys, each once."""
    wanted = set(keys)
    prompts = []
    for item in items if wanted else ():
        completions = {key: ids for key, ids in zip(item.keys, item.completions, strict=True) if key in wanted}
        wanted.difference_update(completions)
        if completions:
            prompts.append(_Misses(item.prompt, completions))
    return prompts


def _landings(misses: _Misses, records: Sequence[Record]) -> dict[bytes, Landing]:
    return {key: Landing(record, True) for key, record in zip(misses.completions, records, strict=True)}
