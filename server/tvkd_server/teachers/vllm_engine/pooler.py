"""What runs in the engine in place of a pooler's mean: each scored position's logits become a few float32.

A row is the position and then the columns that the sequence asked for. The position travels along so that the server
can see that a sequence's rows are complete, in order and not doubled, whatever the scheduler did: chunked prefill,
cached prefixes, preemption.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tvkd_server.teachers.head import reduce
from tvkd_shared.record import Float32


@dataclass(slots=True)
class Chunk:
    """What one step of the engine computed of one sequence: positions `start` … `end` − 1 of its `tokens`."""

    tokens: Tensor
    start: int
    end: int
    finished: bool
    first_state: int
    """The first position that is scored: the last of the prompt."""
    columns: Sequence[str]
    rows: list[Tensor]
    """Rows of earlier chunks of this sequence; the engine keeps the list until the request ends."""

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


class ChunkReducer:
    """`compute_logits` is the model's own: hidden states (S, D) to logits (S, V), None where another rank has them."""

    def __init__(self, compute_logits: Callable[[Tensor], Tensor | None], vocab_size: int, head_chunk: int) -> None:
        self._compute_logits = compute_logits
        self._vocab_size = vocab_size
        self._head_chunk = head_chunk

    @torch.inference_mode()
    def __call__(self, hidden_ND: Tensor, chunks: Sequence[Chunk]) -> list[Tensor | None]:
        """One tensor of rows for each sequence that this step finished, None for the others.

        `hidden_ND` holds the hidden states of one chunk's positions after another's.
        """
        columns = list(dict.fromkeys(name for chunk in chunks for name in chunk.columns))
        table_SK = self._table(hidden_ND, chunks, columns)
        answers: list[Tensor | None] = []
        for chunk in chunks:
            numbers_SK, table_SK = table_SK[: len(chunk.scored)], table_SK[len(chunk.scored) :]
            chunk.add(numbers_SK[:, [columns.index(name) for name in chunk.columns]])
            answers.append(torch.cat(chunk.rows) if chunk.finished else None)
            if chunk.finished:
                chunk.rows.clear()
        return answers

    def _table(self, hidden_ND: Tensor, chunks: Sequence[Chunk], columns: list[str]) -> Tensor:
        """The columns of every scored position of the step, shape (S, K), on the CPU."""
        places: list[int] = []
        actions: list[int] = []
        offset = 0
        for chunk in chunks:
            positions = chunk.scored
            places += [offset + position - chunk.start for position in positions]
            # The last state has no action; token 0 stands in its place, and the server drops what it gives.
            following = chunk.tokens[positions.start + 1 : positions.stop + 1].tolist()
            actions += following + [0] * (len(positions) - len(following))
            offset += chunk.end - chunk.start
        table_SK = torch.zeros(len(places), len(columns))
        device = hidden_ND.device
        for begin in range(0, len(places), self._head_chunk):
            part = slice(begin, begin + self._head_chunk)
            logits_SV = self._compute_logits(hidden_ND[torch.tensor(places[part], device=device)])
            if logits_SV is not None:
                actions_S = torch.tensor(actions[part], device=device)
                table_SK[part] = reduce(logits_SV[:, : self._vocab_size], actions_S, columns).cpu()
        return table_SK
