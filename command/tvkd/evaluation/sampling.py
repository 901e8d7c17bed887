"""A student's own completions of held-out prompts, drawn from its distribution as it is."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, set_seed

TokenIds = Sequence[int]

PROMPTS_AT_ONCE = 32


def sample(
    model: Any, prompts: Sequence[TokenIds], eos: Sequence[int], *, max_new_tokens: int, seed: int
) -> list[list[int]]:
    """One completion of each prompt, at temperature 1 with no cut of the distribution, so that KL can be taken on them.

    A completion ends with its first token of `eos`, or after `max_new_tokens` without one.
    """
    # Nothing of the model's own generation config may bend the distribution, so each number is set.
    how = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens, min_new_tokens=0, eos_token_id=list(eos), pad_token_id=eos[0],
    )  # fmt: skip
    was_training = model.training
    model.train(False)
    set_seed(seed)
    completions: list[list[int]] = []
    try:
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            completions += _sample(model, prompts[start : start + PROMPTS_AT_ONCE], set(eos), how)
    finally:
        model.train(was_training)
    return completions


def _sample(model: Any, prompts: Sequence[TokenIds], eos: set[int], how: GenerationConfig) -> list[list[int]]:
    width = max(map(len, prompts))
    # Prompts are filled on the left, so that the first new token stands next to each.
    ids_NL = torch.tensor([[how.pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask_NL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.no_grad():
        drawn = model.generate(input_ids=ids_NL, attention_mask=mask_NL, generation_config=how)[:, width:].tolist()
    return [_until_end(tokens, eos) for tokens in drawn]


def _until_end(tokens: list[int], eos: set[int]) -> list[int]:
    ends = (place for place, token in enumerate(tokens) if token in eos)
    return tokens[: next(ends, len(tokens) - 1) + 1]
