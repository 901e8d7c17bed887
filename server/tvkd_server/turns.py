"""Whose prompt the teacher reads next: clients in turn, by the tokens that each asked for, and bulk after others."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True)
class Asker:
    """Who waits for values: a client, by its key's name or its address, and whether it fills the store in bulk."""

    client: str = ""
    bulk: bool = False
    max_queued_tokens: int | None = field(default=None, compare=False)
    """How many of the client's tokens may be queued; None: as many as fit."""

    @property
    def work(self) -> str:
        return "bulk" if self.bulk else "on-demand"


@dataclass(order=True, slots=True)
class _Prompt:
    bulk: bool
    start: float
    number: int
    tokens: int = field(compare=False)
    admitted: "asyncio.Future[None]" = field(compare=False)


class Turns:
    """Lets prompts of at most `window` tokens, or one prompt, be with the teacher at once; the others wait here.

    An engine answers in the order in which it is asked, so what is with it cannot be overtaken any more. The order here
    is start-time fair queueing (Goyal, Vin & Cheng 1996): a prompt starts at the tokens that its client asked for
    before it, and a client that comes anew starts where the others are. Once something was asked for on demand, until
    the teacher is idle, prompts in bulk fill half of the window: the next prompt on demand then waits for the pass
    under way, and is in the following one before more of the bulk.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._with_teacher = 0
        self._clock = 0.0
        self._numbers = count()
        self._asked: dict[Asker, float] = {}
        self._waiting: list[_Prompt] = []

    @asynccontextmanager
    async def turn(self, asker: Asker, tokens: int) -> AsyncIterator[None]:
        """Wait until a prompt of so many tokens may go to the teacher. A cancelled one no longer waits."""
        start = max(self._clock, self._asked.get(asker, 0.0))
        self._asked[asker] = start + tokens
        admitted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, _Prompt(asker.bulk, start, next(self._numbers), tokens, admitted))
        self._admit()
        try:
            await admitted
            yield
        finally:
            if not admitted.cancelled():
                self._with_teacher -= tokens
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            prompt = self._waiting[0]
            if not prompt.admitted.done():  # and not cancelled while it waited
                shared = prompt.bulk and not all(asker.bulk for asker in self._asked)
                most = self._window // 2 if shared else self._window
                if self._with_teacher and self._with_teacher + prompt.tokens > most:
                    return
                self._clock = max(self._clock, prompt.start)
                self._with_teacher += prompt.tokens
                prompt.admitted.set_result(None)
            heapq.heappop(self._waiting)
        if not self._with_teacher:
            self._asked.clear()
