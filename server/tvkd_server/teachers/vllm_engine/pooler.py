"""The pooler: logits of a chunk's scored positions to a few float32 a position, before anything leaves the device.

A row is (position, V_τ …, H(π_1), l[next token]). The position travels along, so that the server can see that the rows
of a sequence are complete, in order and not doubled, whatever the scheduler did: chunked prefill, cached prefixes,
preemption.
"""

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor

from tvkd_server.teachers.head import reduce
from tvkd_server.teachers.vllm_engine import private


class ValuePooler(private.Pooler):  # type: ignore[misc]
    """`compute_logits` is the model's own: hidden states (S, D) to logits (S, V), None where another rank has them."""

    def __init__(self, compute_logits: Callable[[Tensor], Tensor | None], vocab_size: int, head_chunk: int) -> None:
        super().__init__()
        self._compute_logits = compute_logits
        self._vocab_size = vocab_size
        self._head_chunk = head_chunk

    def get_supported_tasks(self) -> Set[Any]:
        return {private.TASK}

    def get_pooling_updates(self, task: Any) -> Any:
        return private.PoolingParamsUpdate(requires_token_ids=True)

    @torch.inference_mode()
    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """One tensor of rows for each sequence that this step finished, None for the others."""
        chunks = private.chunk_states(pooling_metadata)
        temperatures = sorted({tau for chunk in chunks for tau in chunk.temperatures})
        table_SK = self._table(hidden_states, chunks, temperatures)
        answers: list[Tensor | None] = []
        for chunk in chunks:
            positions = _scored(chunk)
            block_SK, table_SK = table_SK[: len(positions)], table_SK[len(positions) :]
            columns = [temperatures.index(tau) for tau in chunk.temperatures] + [-2, -1]
            _keep(chunk, torch.tensor(positions, dtype=torch.float32), block_SK[:, columns])
            answers.append(torch.cat(chunk.rows) if chunk.finished else None)
            if chunk.finished:
                chunk.rows.clear()
        return answers

    def _table(self, hidden_states: Tensor, chunks: list[private.Chunk], temperatures: list[float]) -> Tensor:
        """Columns of `reduce` for every scored position of the step, shape (S, K + 2), on the CPU."""
        rows, actions, offset = [], [], 0
        for chunk in chunks:
            positions = _scored(chunk)
            rows += [offset + position - chunk.start for position in positions]
            # The last state has no action; 0 stands in its place, and the server drops what it gives.
            following = chunk.tokens[positions.start + 1 : positions.stop + 1].tolist()
            actions += following + [0] * (len(positions) - len(following))
            offset += chunk.end - chunk.start
        table_SK = torch.zeros(len(rows), len(temperatures) + 2)
        device = hidden_states.device
        for begin in range(0, len(rows), self._head_chunk):
            part = slice(begin, begin + self._head_chunk)
            logits_SV = self._compute_logits(hidden_states[torch.tensor(rows[part], device=device)])
            if logits_SV is not None:
                actions_S = torch.tensor(actions[part], device=device)
                table_SK[part] = reduce(logits_SV[:, : self._vocab_size], actions_S, temperatures).cpu()
        return table_SK


def _scored(chunk: private.Chunk) -> range:
    return range(max(chunk.start, chunk.first_state), max(chunk.end, chunk.first_state))


def _keep(chunk: private.Chunk, positions_S: Tensor, block_SK: Tensor) -> None:
    """Add the chunk's rows; a sequence that was preempted and starts again at `start` repeats its rows from there."""
    kept = [block[block[:, 0] < chunk.start] for block in chunk.rows]
    chunk.rows[:] = [*(block for block in kept if len(block)), torch.cat([positions_S[:, None], block_SK], 1)]
