"""log π of completions under a model, with no gradient: the same for each model, however it was trained."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tvkd_shared.value import Float64

TokenIds = Sequence[int]

TOKENS_AT_ONCE = 2048
"""Tokens of a batch, fill included: their logits are float32 and as wide as the vocabulary."""


def log_probs(model: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> Float64:
    """log π(completion | prompt) of each row, in nats, float64 [N]: the sum over the completion's tokens.

    Nothing is cut: a row that the model has no positions for fails in the model.
    """
    sums = np.zeros(len(prompts))
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            for rows in _batches([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]):
                sums[rows] = _sums(model, [prompts[row] for row in rows], [completions[row] for row in rows])
    finally:
        model.train(was_training)
    return sums


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together, so that little is filled up."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[row] * (len(batch) + 1) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _sums(model: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> Float64:
    logits_CV, ids_C, row_C = completion_logits(model, prompts, completions)
    picked_C = logits_CV.float().log_softmax(-1).gather(1, ids_C[:, None]).squeeze(1).double()
    sums: Float64 = torch.zeros(len(prompts), dtype=torch.float64).index_add(0, row_C.cpu(), picked_C.cpu()).numpy()
    return sums


def completion_logits(
    model: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each completion token of a batch: the logits that it was drawn from [C, V], its id [C], and its row [C]."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    width, shortest = max(map(len, rows)), max(1, min(map(len, prompts)))
    # Rows are filled on the right, behind what is scored, so that no position moves.
    ids_NL = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    place_L = torch.arange(width, device=model.device)
    length_N = torch.tensor([len(row) for row in rows], device=model.device)
    start_N = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    scored_NL = (place_L >= start_N[:, None]) & (place_L < length_N[:, None])
    scored_NL[:, 0] = False  # nothing says how likely a row's first token is
    # No completion begins before the shortest prompt ends, and the head is most of a small model's work.
    logits_NLV = model(
        input_ids=ids_NL,
        attention_mask=(place_L < length_N[:, None]).long(),
        logits_to_keep=width - shortest + 1,
    ).logits
    return logits_NLV[:, :-1][scored_NL[:, shortest:]], ids_NL[scored_NL], scored_NL.nonzero()[:, 0]
