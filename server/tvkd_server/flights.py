"""Single flight: a key is computed by one request at a time, and whoever asks for it meanwhile waits for that one."""

import asyncio
from collections.abc import Iterable
from types import TracebackType


class Flights:
    def __init__(self) -> None:
        self._flying: dict[bytes, asyncio.Future[None]] = {}

    def claim(self, keys: Iterable[bytes]) -> "Claim":
        """Divide the keys into those that nobody computes, which are the caller's from now on, and the others."""
        wanted = list(dict.fromkeys(keys))
        theirs = {key: self._flying[key] for key in wanted if key in self._flying}
        claim = Claim(self._flying, [key for key in wanted if key not in theirs], theirs)
        self._flying.update(dict.fromkeys(claim.mine, claim.landed))
        return claim


class Claim:
    """Keys that one request computes, and those that it waits for. Leaving it as a context lands its own."""

    def __init__(
        self, flying: dict[bytes, asyncio.Future[None]], mine: list[bytes], theirs: dict[bytes, asyncio.Future[None]]
    ) -> None:
        self.mine = mine
        self.theirs = theirs
        self.landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flying = flying

    def land(self, error: BaseException | None = None) -> None:
        """Give the keys free. An error is everyone's who waits; after a cancellation the next one tries again."""
        if self.landed.done():
            return
        for key in self.mine:
            del self._flying[key]
        if isinstance(error, Exception):
            self.landed.set_exception(error)
            self.landed.exception()  # read once, so that asyncio does not warn when nobody waits
        else:
            self.landed.set_result(None)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.land(error)

    async def others(self) -> None:
        """Wait for the keys of others. Raises the error of one that failed."""
        if self.theirs:
            await asyncio.wait(set(self.theirs.values()))
            for flight in self.theirs.values():
                flight.result()
