"""Back-pressure: a request that would overfill the queue is refused at once, never half done."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tvkd_server.turns import Asker
from tvkd_shared.errors import Overloaded


class Admission:
    """Counts the tokens that are admitted and not yet computed, against a budget, of which bulk may fill one half, and
    those of each client that has a budget of its own.

    A request larger than a whole budget is admitted when nothing else of it is: it would otherwise never run.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.queued = 0
        self._queued_of: Counter[str] = Counter()
        self._released = 0
        self._busy_since = time.monotonic()

    @contextmanager
    def hold(self, tokens: int, asker: Asker) -> Iterator[None]:
        """Hold the tokens while the teacher works. Raises Overloaded with the time after which to try again."""
        self._check(self.queued, tokens, self.budget // 2 if asker.bulk else self.budget, "")
        if asker.max_queued_tokens is not None:
            self._check(self._queued_of[asker.client], tokens, asker.max_queued_tokens, " of this API key")
        if not self.queued:
            self._released, self._busy_since = 0, time.monotonic()
        self.queued += tokens
        self._queued_of[asker.client] += tokens
        try:
            yield
        finally:
            self.queued -= tokens
            self._queued_of[asker.client] -= tokens
            if not self._queued_of[asker.client]:
                del self._queued_of[asker.client]
            self._released += tokens

    def _check(self, queued: int, tokens: int, budget: int, whose: str) -> None:
        if queued and queued + tokens > budget:
            wait = self._seconds_to_half()
            raise Overloaded(
                f"{queued:,} tokens{whose} are queued and {tokens:,} more exceed the budget of {budget:,}; "
                f"try again in {wait:.0f} s",
                retry_after=wait,
            )

    def _seconds_to_half(self) -> float:
        """Time for half the queue to pass at the rate seen since it was last empty, within 1 … 60 s; 2 before that."""
        if not self._released:
            return 2.0
        elapsed = time.monotonic() - self._busy_since
        return min(60.0, max(1.0, self.queued / 2 * elapsed / self._released))
