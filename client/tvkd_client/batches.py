"""Items in requests of a bounded size, and a bounded number of requests under way."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tvkd_shared.wire import TextItem, TokenItem

Batch = TypeVar("Batch")
Result = TypeVar("Result")
AnyItem = TypeVar("AnyItem", TokenItem, TextItem)


@dataclass(frozen=True, slots=True)
class FillCount:
    """Counts over answered requests of `TeacherClient.fill`: completions, tokens, and those computed."""

    sequences: int
    tokens: int
    computed: int

    @property
    def hits(self) -> int:
        return self.sequences - self.computed

    def __add__(self, other: "FillCount") -> "FillCount":
        return FillCount(self.sequences + other.sequences, self.tokens + other.tokens, self.computed + other.computed)


def tokens_of(item: TokenItem | TextItem) -> int:
    """Tokens of an item; of text about how many, one for three bytes, with the prompt once for each completion."""
    if isinstance(item, TokenItem):
        return len(item.prompt_token_ids) + sum(map(len, item.completions))
    texts = [item.prompt] if isinstance(item.prompt, str) else [message.content for message in item.prompt]
    return sum(len(text.encode()) for text in [*texts * len(item.completions), *item.completions]) // 3


def split(items: Iterable[AnyItem], tokens: int) -> Iterator[tuple[int, list[AnyItem]]]:
    """Items in order, in batches of at most `tokens` tokens, each with the index of its first item.

    A single item that holds more goes alone.
    """
    first, batch, held = 0, list[AnyItem](), 0
    for item in items:
        size = tokens_of(item)
        if batch and held + size > tokens:
            yield first, batch
            first, batch, held = first + len(batch), [], 0
        batch.append(item)
        held += size
    if batch:
        yield first, batch


def in_order(
    function: Callable[[Batch], Result], batches: Iterable[Batch], in_flight: int
) -> Generator[Result, None, None]:
    """`function` of each batch, in order, `in_flight` at once; batches are drawn as they are needed.

    An error, or an interrupt, drops the batches not begun and returns without those under way. Python waits for their
    threads when the process ends, so `function` has to end soon once its caller has gone.
    """
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="tvkd")
    waiting: deque[Future[Result]] = deque()
    try:
        for batch in batches:
            # Twice as many submitted as run: one slow batch at the head does not leave the others idle.
            if len(waiting) == 2 * in_flight:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, batch))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
