"""What a token would cost if the teacher's distribution were kept instead of its value: measured on the same data."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TOP = 50


def logit_bytes(
    teacher: Path, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Bytes a completion token of the given sample, for two ways to precompute a teacher.

    top_50_json_lines  one line a completion; for each token the 50 likeliest ids, their float16 probabilities and the
                       rest's sum: the rows that github.com/kaist-siit-lab/StarLab_Preference-Distillation-via-
                       Value-based-Reinforcement-Learning, utils/precompute_logits_for_train.py, writes
    full_bf16_logits   two bytes for each row of the vocabulary
    """
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    written = tokens = 0
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        top = logits_TV.softmax(-1).half().topk(TOP)
        rest_T = 1 - top.values.float().sum(-1)
        distributions = [
            {"indices": ids.tolist(), "values": probabilities.tolist(), "remaining_probs_sum": rest.item()}
            for ids, probabilities, rest in zip(top.indices, top.values, rest_T, strict=True)
        ]
        row = {"index": index, "compressed_probs": distributions, "labels": list(completion)}
        written += len(json.dumps(row).encode()) + 1
        tokens += len(completion)
    return {"top_50_json_lines": written / tokens, "full_bf16_logits": 2.0 * model.config.vocab_size}
