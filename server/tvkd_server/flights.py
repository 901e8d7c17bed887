"""Single flight: a key is looked up and computed by one request at a time; all others that ask for it wait for that."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from tvkd_shared.errors import Overloaded
from tvkd_shared.record import Record


@dataclass(slots=True)
class Landing:
    """A record and whether the teacher computed it for this flight; otherwise the store had it."""

    record: Record
    computed: bool


Flight = asyncio.Future[Landing]
Landed = Callable[[Mapping[bytes, Landing]], None]


class Flights:
    def __init__(self) -> None:
        self._flights: dict[tuple[bytes, tuple[str, ...]], Flight] = {}

    def claim(self, keys: Iterable[bytes], columns: tuple[str, ...], landed: Landed) -> "Claim":
        """Divide keys into those that are the caller's from now on, and those that another request is busy with.

        `landed` is told of each key as it lands, whoever it belongs to.
        """
        create = asyncio.get_running_loop().create_future
        own, others = dict[bytes, Flight](), dict[bytes, Flight]()
        for key in keys:
            flight = self._flights.get((key, columns))
            if flight is None:
                own[key] = self._flights[key, columns] = create()
            elif key not in own:
                others[key] = flight
        return Claim(own, others, lambda key: self._flights.pop((key, columns)), landed)


class Claim:
    """Keys that one request answers for all, and those that it waits for. Used as a context, it lets no key hang.

    An error that ends the context reaches everyone who waits. After a cancellation, or a refusal for overload, which is
    about this request and not about the key, those who wait claim the key themselves.
    """

    def __init__(
        self, own: dict[bytes, Flight], others: dict[bytes, Flight], end: Callable[[bytes], Flight], landed: Landed
    ) -> None:
        """`end` makes a key free again and returns its flight."""
        self._own, self._others, self._end, self._landed = own, others, end, landed
        for key, flight in others.items():
            flight.add_done_callback(partial(self._other_landed, key))

    @property
    def keys(self) -> list[bytes]:
        """The caller's keys that have neither landed nor failed."""
        return list(self._own)

    def land(self, landings: Mapping[bytes, Landing]) -> None:
        for key, landing in landings.items():
            del self._own[key]
            self._end(key).set_result(landing)
        self._landed(landings)

    def fail(self, keys: Iterable[bytes], error: Exception) -> None:
        for key in keys:
            del self._own[key]
            flight = self._end(key)
            flight.set_exception(error)
            flight.exception()  # read once, so that asyncio does not warn when nobody waits

    async def others(self) -> dict[bytes, Landing]:
        """What others landed, without the keys that they gave up. Raises the error of a flight that failed."""
        if self._others:
            await asyncio.wait(self._others.values())
        return {key: flight.result() for key, flight in self._others.items() if not flight.cancelled()}

    def _other_landed(self, key: bytes, flight: Flight) -> None:
        if not flight.cancelled() and flight.exception() is None:
            self._landed({key: Landing(flight.result().record, computed=False)})

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, Overloaded):
            self.fail(self.keys, error)
        else:
            for key in self._own:
                self._end(key).cancel()
