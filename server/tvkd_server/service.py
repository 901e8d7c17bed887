"""The way of a request: look-up, admission, single flight, teacher, store, answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tvkd_server.admission import Admission
from tvkd_server.metrics import Metrics
from tvkd_server.store import Store
from tvkd_server.teachers.limits import check
from tvkd_server.teachers.teacher import Teacher
from tvkd_server.writer import GroupCommit
from tvkd_shared.errors import NotCached, PayloadTooLarge, StoreUnavailable, TeacherMismatch
from tvkd_shared.key import completion_keys
from tvkd_shared.scored import Scored
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

    def cost(self, missing: set[bytes]) -> int:
        """Tokens the teacher reads for the missing completions: the prompt once, each completion."""
        lengths = {key: len(ids) for key, ids in zip(self.keys, self.tokens.completions, strict=True)}
        wanted = [length for key, length in lengths.items() if key in missing]
        return len(self.tokens.prompt_token_ids) + sum(wanted) if wanted else 0


class Service:
    def __init__(
        self, teacher: Teacher, store: Store, metrics: Metrics, *, max_queued_tokens: int, max_request_tokens: int
    ) -> None:
        self.teacher = teacher
        self.store = store
        self.max_request_tokens = max_request_tokens
        self.admission = Admission(max_queued_tokens)
        self.metrics = metrics
        self._commit = GroupCommit(store)
        self._flights: dict[bytes, asyncio.Future[None]] = {}
        metrics.queued_tokens.set_function(lambda: self.admission.queued)
        store.add_teacher(teacher.info)

    async def potentials(self, request: PotentialsRequest) -> PotentialsAnswer:
        """Answer a request. Raises the errors of `tvkd_shared.errors`; what was computed before one is stored."""
        info = self.teacher.info
        if request.teacher_id not in (None, info.id):
            raise TeacherMismatch(f"teacher {request.teacher_id} was asked for; this server runs {info.id}")
        work = await asyncio.to_thread(self._prepare, request)
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
        work, total = [], 0
        for index, item in enumerate(request.items):
            tokens = self.teacher.tokenize(item) if isinstance(item, TextItem) else item
            prompt, completions = tokens.prompt_token_ids, tokens.completions
            check(self.teacher.info, prompt, completions, request.temperatures, f"items[{index}]")
            keys = completion_keys(self.teacher.info.id, prompt, completions)
            work.append(_Work(tokens, keys, isinstance(item, TextItem)))
            total += work[-1].cost(set(keys))
        if total > self.max_request_tokens:
            raise PayloadTooLarge(
                f"the request holds {total:,} tokens; at most {self.max_request_tokens:,} fit: split it"
            )
        return work

    async def _through_store(
        self, work: list[_Work], request: PotentialsRequest
    ) -> tuple[dict[bytes, Scored], set[bytes]]:
        """Records of every key, and the keys that the teacher scored for this request."""
        keys = list(dict.fromkeys(key for item in work for key in item.keys))
        records = await self._look_up(keys, request.temperatures)
        missing = set(keys) - records.keys()
        self.metrics.cached.inc(len(records))
        if not missing:
            return records, set()
        if request.cache == "only":
            raise NotCached(f"{len(missing)} of {len(keys)} completions are not in the store, and cache is `only`")
        with self.admission.hold(sum(item.cost(missing) for item in work)):
            outcomes = await asyncio.gather(
                *(self._fill(item, missing, request.temperatures) for item in work), return_exceptions=True
            )
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

    async def _fill(self, item: _Work, missing: set[bytes], temperatures: Sequence[float]) -> set[bytes]:
        """Bring the item's missing keys into the store, each computed once whoever asks. Returns those scored here."""
        wanted = {k: ids for k, ids in zip(item.keys, item.tokens.completions, strict=True) if k in missing}
        scored_here: set[bytes] = set()
        while wanted:
            theirs = {key: self._flights[key] for key in wanted if key in self._flights}
            mine = [key for key in wanted if key not in theirs]
            landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flights.update(dict.fromkeys(mine, landed))
            try:
                # Another flight may have landed between this request's look-up and now.
                present = await self._look_up(mine, temperatures)
                absent = [key for key in mine if key not in present]
                if absent:
                    scored = await self._score(item.tokens.prompt_token_ids, [wanted[k] for k in absent], temperatures)
                    with self.metrics.store_seconds.labels("put").time():
                        await self._commit.put(list(zip(absent, scored, strict=True)))
                    self.metrics.computed.inc(len(absent))
                    scored_here.update(absent)
            finally:
                for key in mine:
                    del self._flights[key]
                landed.set_result(None)
            if theirs:
                await asyncio.wait(set(theirs.values()))
            # A flight that failed, or carried other temperatures, leaves its keys to be tried again here.
            landed_elsewhere = await self._look_up(list(theirs), temperatures)
            wanted = {key: wanted[key] for key in theirs if key not in landed_elsewhere}
        return scored_here

    async def _skip_store(
        self, work: list[_Work], temperatures: Sequence[float]
    ) -> tuple[dict[bytes, Scored], set[bytes]]:
        tokens = sum(item.cost(set(item.keys)) for item in work)
        with self.admission.hold(tokens):
            scored = await asyncio.gather(
                *(self._score(w.tokens.prompt_token_ids, w.tokens.completions, temperatures) for w in work)
            )
        records = {key: one for w, row in zip(work, scored, strict=True) for key, one in zip(w.keys, row, strict=True)}
        self.metrics.computed.inc(sum(len(row) for row in scored))
        return records, set(records)

    async def _score(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> list[Scored]:
        with self.metrics.teacher_seconds.time():
            scored = await self.teacher.score(prompt, completions, temperatures)
        self.metrics.teacher_tokens.inc(len(prompt) + sum(map(len, completions)))
        return scored

    async def _look_up(self, keys: list[bytes], temperatures: Sequence[float]) -> dict[bytes, Scored]:
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
        return StoreInfo(
            sequences=counts.sequences,
            tokens=counts.tokens,
            bytes=counts.bytes,
            bytes_per_token=counts.bytes / counts.tokens if counts.tokens else 0.0,
            hits=self.metrics.count("tvkd_cached_completions_total"),
            misses=self.metrics.count("tvkd_computed_completions_total")
            + self.metrics.count("tvkd_joined_completions_total"),
        )

    async def close(self) -> None:
        await self.teacher.close()
        await asyncio.to_thread(self.store.close)


def _answer(
    request: PotentialsRequest, key: bytes, record: Scored, *, cached: bool, tokens: list[int] | None
) -> CompletionAnswer:
    answer = CompletionAnswer(key=key.hex(), cached=cached, length=record.length, tokens=tokens)
    if request.return_ == "values":
        answer.values = [record.values[temperature].tolist() for temperature in request.temperatures]
        answer.action_logits = record.action_logits.tolist()
        if request.entropy:
            answer.entropies = record.entropies.tolist()
    return answer
