"""The way of a request: look-up, admission, single flight, teacher, store, answer."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tvkd_server.admission import Admission
from tvkd_server.flights import Claim, Flights
from tvkd_server.metrics import Metrics
from tvkd_server.store import Store
from tvkd_server.teachers.teacher import Teacher, check_temperatures
from tvkd_server.writer import GroupCommit
from tvkd_shared.errors import NotCached, PayloadTooLarge, StoreUnavailable, TeacherMismatch, TVKDError
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record, column_names
from tvkd_shared.wire import (
    CompletionAnswer,
    ItemAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    StoreInfo,
    TextItem,
    TokenItem,
)


@dataclass(frozen=True, slots=True)
class _Work:
    """One item of a request with the keys of its completions."""

    tokens: TokenItem
    keys: list[bytes]
    from_text: bool

    @property
    def size(self) -> int:
        """Tokens that were sent: the prompt once, or as often as it was tokenised, and each completion."""
        times = len(self.keys) if self.from_text else 1
        return times * len(self.tokens.prompt_token_ids) + sum(map(len, self.tokens.completions))

    def cost(self, missing: set[bytes]) -> int:
        """Tokens the teacher reads for the missing completions: the prompt once, each completion."""
        lengths = {key: len(ids) for key, ids in zip(self.keys, self.tokens.completions, strict=True)}
        wanted = [length for key, length in lengths.items() if key in missing]
        return len(self.tokens.prompt_token_ids) + sum(wanted) if wanted else 0


class Service:
    def __init__(
        self,
        teacher: Teacher,
        store: Store,
        commit: GroupCommit,
        metrics: Metrics,
        *,
        max_queued_tokens: int,
        max_request_tokens: int,
    ) -> None:
        self.teacher = teacher
        self.store = store
        self.max_request_tokens = max_request_tokens
        self.admission = Admission(max_queued_tokens)
        self.metrics = metrics
        self._commit = commit
        self._flights = Flights()
        # Threads of its own, so that tokenising long texts keeps no look-up waiting.
        self._preparing = ThreadPoolExecutor(2, "prepare")
        metrics.queued_tokens.set_function(lambda: self.admission.queued)
        metrics.corrupt.set_function(lambda: store.corrupt)
        store.add_teacher(teacher.info)

    async def potentials(self, request: PotentialsRequest) -> PotentialsAnswer:
        """Answer a request. Raises the errors of `tvkd_shared.errors`; what was computed before one is stored."""
        info = self.teacher.info
        if request.teacher_id not in (None, info.id):
            raise TeacherMismatch(f"teacher {request.teacher_id} was asked for; this server runs {info.id}")
        check_temperatures(request.temperatures)
        work = await asyncio.get_running_loop().run_in_executor(self._preparing, self._prepare, request)
        if request.cache == "skip":
            records, fresh = await self._skip_store(work, request.temperatures)
        else:
            records, fresh = await self._through_store(work, request)
        return PotentialsAnswer(
            teacher_id=info.id,
            temperatures=request.temperatures,
            items=[
                ItemAnswer(
                    prompt_tokens=item.tokens.prompt_token_ids if item.from_text else None,
                    completions=[
                        _answer(
                            request, key, records[key], cached=key not in fresh, tokens=ids if item.from_text else None
                        )
                        for key, ids in zip(item.keys, item.tokens.completions, strict=True)
                    ],
                )
                for item in work
            ],
        )

    def _prepare(self, request: PotentialsRequest) -> list[_Work]:
        """Tokenise and check every item before the teacher sees one."""
        work: list[_Work] = []
        left = self.max_request_tokens
        for index, item in enumerate(request.items):
            at = f"items[{index}]"
            tokens = self._tokenized(item, left, at) if isinstance(item, TextItem) else item
            prompt, completions = tokens.prompt_token_ids, tokens.completions
            self.teacher.check(prompt, completions, at)
            keys = completion_keys(self.teacher.info.id, prompt, completions)
            work.append(_Work(tokens, keys, isinstance(item, TextItem)))
            left -= work[-1].size
            if left < 0:
                raise PayloadTooLarge(
                    f"{at}: the request holds more than {self.max_request_tokens:,} tokens, the most that fit: split it"
                )
        return work

    def _tokenized(self, item: TextItem, left: int, at: str) -> TokenItem:
        try:
            return self.teacher.tokenize(item, left)
        except TVKDError as error:
            raise type(error)(f"{at}: {error}") from error

    async def _through_store(
        self, work: list[_Work], request: PotentialsRequest
    ) -> tuple[dict[bytes, Record], set[bytes]]:
        """Records of every key, and the keys that the teacher scored for this request."""
        keys = list(dict.fromkeys(key for item in work for key in item.keys))
        records = await self._look_up(keys, request.temperatures)
        missing = set(keys) - records.keys()
        self.metrics.cached.inc(len(records))
        if not missing:
            return records, set()
        if request.cache == "only":
            raise NotCached(f"{len(missing)} of {len(keys)} completions are not in the store, and cache is `only`")
        # Claimed and admitted before anything is awaited: only what this request computes itself counts.
        claims = [self._flights.claim(key for key in item.keys if key in missing) for item in work]
        try:
            with self.admission.hold(sum(w.cost(set(c.mine)) for w, c in zip(work, claims, strict=True))):
                outcomes = await asyncio.gather(
                    *(self._fill(w, c, request.temperatures) for w, c in zip(work, claims, strict=True)),
                    return_exceptions=True,
                )
        finally:
            for claim in claims:
                claim.land()
        fresh: set[bytes] = set()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            fresh |= outcome
        self.metrics.joined.inc(len(missing - fresh))
        # What is answered is what was stored: the same bytes then and ever after.
        stored = await self._look_up(sorted(missing), request.temperatures)
        if len(stored) < len(missing):
            raise StoreUnavailable("values just stored could not be read back: check the store's disk, then try again")
        return records | stored, fresh

    async def _fill(self, item: _Work, claim: Claim, temperatures: Sequence[float]) -> set[bytes]:
        """Bring the claimed keys into the store and wait for those of others. Returns the keys scored here."""
        completions = dict(zip(item.keys, item.tokens.completions, strict=True))
        scored_here: set[bytes] = set()
        while True:
            with claim:
                # Another flight may have landed between this request's look-up and its claim.
                present = await self._look_up(claim.mine, temperatures)
                absent = [key for key in claim.mine if key not in present]
                if absent:
                    scored = await self._score(
                        item.tokens.prompt_token_ids, [completions[key] for key in absent], temperatures
                    )
                    with self.metrics.store_seconds.labels("put").time():
                        await self._commit.put(list(zip(absent, scored, strict=True)))
                    self.metrics.computed.inc(len(absent))
                    scored_here.update(absent)
            await claim.others()
            # A flight that was cancelled, or carried other temperatures, leaves its keys to be claimed again.
            landed = await self._look_up(list(claim.theirs), temperatures)
            left = [key for key in claim.theirs if key not in landed]
            if not left:
                return scored_here
            claim = self._flights.claim(left)

    async def _skip_store(
        self, work: list[_Work], temperatures: Sequence[float]
    ) -> tuple[dict[bytes, Record], set[bytes]]:
        once = [dict(zip(item.keys, item.tokens.completions, strict=True)) for item in work]
        with self.admission.hold(sum(item.cost(set(item.keys)) for item in work)):
            scored = await asyncio.gather(
                *(
                    self._score(item.tokens.prompt_token_ids, list(completions.values()), temperatures)
                    for item, completions in zip(work, once, strict=True)
                )
            )
        records = {key: one for keys, row in zip(once, scored, strict=True) for key, one in zip(keys, row, strict=True)}
        self.metrics.computed.inc(sum(map(len, scored)))
        return records, set(records)

    async def _score(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> list[Record]:
        with self.metrics.teacher_seconds.time():
            scored = await self.teacher.score(prompt, completions, column_names(temperatures))
        self.metrics.teacher_tokens.inc(len(prompt) + sum(map(len, completions)))
        return scored

    async def _look_up(self, keys: list[bytes], temperatures: Sequence[float]) -> dict[bytes, Record]:
        """Records that the store holds with every asked temperature."""
        with self.metrics.store_seconds.labels("get").time():
            found = await asyncio.to_thread(self.store.get, keys, temperatures)
        return {
            key: record
            for key, record in zip(keys, found, strict=True)
            if record is not None and all(temperature in record.values for temperature in temperatures)
        }

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


def _answer(
    request: PotentialsRequest, key: bytes, record: Record, *, cached: bool, tokens: list[int] | None
) -> CompletionAnswer:
    answer = CompletionAnswer(key=key.hex(), cached=cached, length=record.length, tokens=tokens)
    if request.return_ == "values":
        answer.values = [record.values[temperature].tolist() for temperature in request.temperatures]
        answer.action_logits = record.action_logits.tolist()
        if request.entropy:
            answer.entropies = record.entropies.tolist()
    return answer
