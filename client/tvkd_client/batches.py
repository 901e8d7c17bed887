"""Items in requests of a bounded size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tvkd_shared.wire import TextItem, TokenItem

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
