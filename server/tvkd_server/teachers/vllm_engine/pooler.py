"""What runs in the engine in place of a pooler: each scored position's logits become a few float32.

A row is the position and then the columns that the sequence asked for. The position travels along so that the server
can see that a sequence's rows are complete, in order and not doubled, whatever the scheduler did: chunked prefill,
cached prefixes, preemption.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tvkd_server.teachers.head import reduce_hidden
from tvkd_shared.record import Float32


@dataclass(slots=True)
class Chunk:
    """What one step of the engine computed of one sequence: positions `start` … `end` − 1 of its `tokens`.

    first_state  the first position that is scored: the last of the prompt
    rows         rows of earlier chunks of this sequence; the engine keeps the list until the request ends
    """

    tokens: Tensor
    start: int
    end: int
    finished: bool
    first_state: int
    columns: Sequence[str]
    rows: list[Tensor]

    @property
    def scored(self) -> range:
        """The positions of this chunk that are scored."""
        return range(max(self.start, self.first_state), max(self.end, self.first_state))

    def add(self, numbers_SK: Tensor) -> None:
        """Add this chunk's rows. A sequence that was preempted and starts again repeats its rows from `start`."""
        earlier = [rows[rows[:, 0] < self.start] for rows in self.rows]
        positions_S = torch.tensor(self.scored, dtype=torch.float32)
        self.rows[:] = [*(rows for rows in earlier if len(rows)), torch.cat([positions_S[:, None], numbers_SK], 1)]


def split_rows(rows: Float32) -> tuple[Float32, Float32]:
    """Positions (S,) and numbers (S, K) of a sequence's rows, as `Chunk.add` laid them out."""
    return rows[:, 0], rows[:, 1:].copy()


@torch.inference_mode()
def reduce_chunks(
    logits: Callable[[Tensor], Tensor | None], hidden_ND: Tensor, chunks: Sequence[Chunk], head_chunk: int
) -> list[Tensor | None]:
    """One tensor of rows for each sequence that this step finished, None for the others.

    `hidden_ND` holds the hidden states of one chunk's positions after another's; for `logits` see `reduce_hidden`.
    """
    columns = list(dict.fromkeys(name for chunk in chunks for name in chunk.columns))
    places: list[int] = []
    actions: list[int] = []
    offset = 0
    for chunk in chunks:
        places += [offset + position - chunk.start for position in chunk.scored]
        # The last state has no action; token 0 stands in its place, and the server drops what it gives.
        actions += [*chunk.tokens[chunk.scored.start + 1 : chunk.scored.stop + 1].tolist(), 0][: len(chunk.scored)]
        offset += chunk.end - chunk.start
    places_S, actions_S = (torch.tensor(ids, dtype=torch.long, device=hidden_ND.device) for ids in (places, actions))
    table_SK = reduce_hidden(logits, hidden_ND[places_S], actions_S, columns, head_chunk)
    answers: list[Tensor | None] = []
    for chunk, numbers_SK in zip(chunks, torch.split(table_SK, [len(c.scored) for c in chunks]), strict=True):
        chunk.add(numbers_SK[:, [columns.index(name) for name in chunk.columns]])
        answers.append(torch.cat(chunk.rows) if chunk.finished else None)
        if chunk.finished:
            chunk.rows.clear()
    return answers
