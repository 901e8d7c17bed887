"""Where a model's values come from: a server that computes what it lacks, or a filled store with no server."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tvkd_client.http import TeacherClient
from tvkd_shared.errors import InvalidRequest, NotCached, StoreUnavailable, TeacherMismatch
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record, column_names
from tvkd_shared.store import StoreReader
from tvkd_shared.wire import TeacherInfo, TokenItem


class ValueSource(Protocol):
    """Values of whole sequences: a caller that truncates cuts them afterwards, so that every student asks for the same.

    Picklable and safe after a fork: connections and files open at the first use in each process.
    """

    @property
    def teacher_id(self) -> str: ...

    def fetch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Record]:
        """Record of each completion after the prompt of the same index, at the source's temperatures and at 1.0.

        Raises the errors of `tvkd_shared.errors`; a value is there or an error is, nothing is filled in.
        """
        ...


class ServerSource:
    """Values over HTTP, on demand: what the server's store lacks is computed there and kept.

    `teacher_id` is an id or the teacher's name. Raises InvalidRequest when the URL is not one. `api_key` defaults to
    TVKD_API_KEY.
    """

    def __init__(
        self,
        url: str,
        temperatures: Sequence[float] = (1.0,),
        api_key: str | None = None,
        teacher_id: str | None = None,
    ) -> None:
        self._named, self._identified = teacher_id, False
        self.client = TeacherClient(url, api_key=api_key, teacher_id=teacher_id if _is_id(teacher_id) else None)
        self.temperatures = tuple(temperatures)

    @property
    def teacher_id(self) -> str:
        """The id of the server's teacher, which it is asked for once. Raises TeacherMismatch when another was named."""
        self._identify()
        return str(self.client.teacher_id)

    def fetch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Record]:
        """See `ValueSource`."""
        items, places = grouped(prompts, completions)
        if not items:
            return []
        self._identify()
        rows = self.client.potentials(items, temperatures=self.temperatures)
        return [rows[item][completion] for item, completion in places]

    def fill(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> int:
        """Have the values of these pairs stored at the server. Returns how many were not stored before."""
        items, _ = grouped(prompts, completions)
        return self.client.fill(items, self.temperatures)

    def _identify(self) -> None:
        if not self._identified:
            teacher = self.client.teacher()
            if self._named not in (None, teacher.id, teacher.name):
                raise TeacherMismatch(f"{self.client.url} has teacher {teacher.name} ({teacher.id}), not {self._named}")
            self._identified = True


class StoreSource:
    """Values from a store, a folder or a URL of object storage, with no server.

    `teacher_id` is an id, or the name of exactly one model of the store; it may be left out when the store holds one.
    Opening raises InvalidRequest when several fit, NotCached when the store is empty, TeacherMismatch when it has not
    the one named, StoreUnavailable when it cannot be read.
    """

    def __init__(
        self, place: str | Path, temperatures: Sequence[float] = (1.0,), teacher_id: str | None = None
    ) -> None:
        self.place = str(place)
        self.temperatures = tuple(dict.fromkeys((1.0, *map(float, temperatures))))
        self._named = teacher_id
        self._opened: dict[int, tuple[StoreReader, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    @property
    def teacher_id(self) -> str:
        return self._open()[1]

    @property
    def reader(self) -> StoreReader:
        """The store, as this process opened it."""
        return self._open()[0]

    def fetch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Record]:
        """See `ValueSource`. Raises NotCached saying how many are missing."""
        reader, teacher = self._open()
        keys = _keys(teacher, prompts, completions)
        records = [record for record in reader.get(keys, column_names(self.temperatures)) if record is not None]
        if len(records) < len(keys):
            raise NotCached(
                f"{len(keys) - len(records)} of {len(keys)} completions are not in store {self.place} at temperatures "
                f"{', '.join(map(str, self.temperatures))} of teacher {teacher}; `tvkd prefetch` fills them in"
            )
        return records

    def missing(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> int:
        """How many of these completions the store lacks, by its index alone: a few microseconds for each."""
        reader, teacher = self._open()
        keys = _keys(teacher, prompts, completions)
        lacking = reader.lacking(keys, column_names(self.temperatures))
        return sum(key in lacking for key in keys)

    def _open(self) -> tuple[StoreReader, str]:
        opened = self._opened.get(os.getpid())
        if opened is None:
            reader = StoreReader(self.place)
            opened = self._opened[os.getpid()] = (reader, self._choose(reader))
        return opened

    def _choose(self, reader: StoreReader) -> str:
        names = {teacher: str(known.get("name")) for teacher, known in reader.teachers().items()}
        ids = reader.teacher_ids()
        listed = ", ".join(f"{teacher} ({names[teacher]})" if teacher in names else teacher for teacher in ids)
        fitting = [teacher for teacher in ids if self._named in (None, teacher, names.get(teacher))]
        if not ids:
            raise NotCached(f"store {self.place} is empty; `tvkd prefetch` fills it")
        if not fitting:
            raise TeacherMismatch(f"store {self.place} has no teacher {self._named}; it holds {listed}")
        if len(fitting) > 1:
            several = f"teachers named {self._named}" if self._named else "teachers"
            raise InvalidRequest(
                f"store {self.place} holds several {several}; name one by its id, in teacher_id (--teacher-id) or "
                f"the like of another role: {listed}"
            )
        return fitting[0]


def source_at(place: str, temperatures: Sequence[float] = (1.0,), teacher_id: str | None = None) -> ValueSource:
    """The source at a place: a server's URL, http://… or https://…, or a store, a folder or s3://….

    Raises InvalidRequest when the place is a folder that does not exist.
    """
    if is_server(place):
        return ServerSource(place, temperatures, teacher_id=teacher_id)
    if "://" not in place and not Path(place).is_dir():
        raise InvalidRequest(f"{place} is no server's URL and no folder; `tvkd prefetch --store` makes a store")
    return StoreSource(place, temperatures, teacher_id=teacher_id)


def is_server(place: str) -> bool:
    """Whether a place is a server's URL, and not a store."""
    return place.startswith(("http://", "https://"))


def teacher_of(source: ValueSource) -> TeacherInfo | None:
    """What is known of a source's teacher; None for a source that is not ours.

    Raises StoreUnavailable when a store has its values and no sound provenance.
    """
    if isinstance(source, ServerSource):
        return source.client.teacher()
    if isinstance(source, StoreSource):
        known = source.reader.teachers().get(source.teacher_id)
        if known is None:
            raise StoreUnavailable(
                f"what {source.place} says of teacher {source.teacher_id} is damaged or lost, its vocabulary too: "
                "`tvkd serve` with that teacher writes it anew; other_vocabulary goes without"
            )
        return TeacherInfo.model_validate(known)
    return None


def check_certificate(source: ValueSource, max_value_error: float) -> None:
    """Raises InvalidRequest unless the newest certificate of the source's teacher says that no error was larger."""
    if isinstance(source, ServerSource):
        certificates = source.client.store().certificates
    elif isinstance(source, StoreSource):
        certificates = source.reader.certificates()
    else:
        raise InvalidRequest(f"max_value_error is set, and {type(source).__name__} has no certificates; leave it out")
    errors = [c.largest_error for c in certificates if c.teacher == source.teacher_id]
    if not errors:
        raise InvalidRequest(
            f"max_value_error is {max_value_error} and the store has no certificate of teacher {source.teacher_id}; "
            "`tvkd store verify --rescore` makes one"
        )
    if errors[-1] > max_value_error:
        raise InvalidRequest(
            f"the store's newest certificate says errors up to {errors[-1]:.2g}, more than max_value_error "
            f"{max_value_error}; serve the teacher in float32, or allow more"
        )


def grouped(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[list[TokenItem], list[tuple[int, int]]]:
    """Items with each prompt once and its different completions, and each pair's (item, completion) in them."""
    groups: dict[tuple[int, ...], tuple[int, dict[tuple[int, ...], int]]] = {}
    places = []
    for prompt, completion in zip(prompts, completions, strict=True):
        item, numbers = groups.setdefault(tuple(map(int, prompt)), (len(groups), {}))
        places.append((item, numbers.setdefault(tuple(map(int, completion)), len(numbers))))
    items = [TokenItem(list(prompt), [list(ids) for ids in numbers]) for prompt, (_, numbers) in groups.items()]
    return items, places


def _keys(teacher: str, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[bytes]:
    """The key of each completion after the prompt of the same index.

    A prompt that comes again as the same object, as that of a chosen and a rejected completion, is digested once.
    """
    groups: dict[int, tuple[Sequence[int], list[int]]] = {}
    for place, (prompt, _) in enumerate(zip(prompts, completions, strict=True)):
        groups.setdefault(id(prompt), (prompt, []))[1].append(place)
    keys: dict[int, bytes] = {}
    for prompt, places in groups.values():
        of_prompt = completion_keys(teacher, prompt, [completions[place] for place in places])
        keys.update(zip(places, of_prompt, strict=True))
    return [keys[place] for place in range(len(keys))]


def _is_id(teacher: str | None) -> bool:
    return teacher is not None and re.fullmatch(r"[0-9a-f]{32}", teacher) is not None
