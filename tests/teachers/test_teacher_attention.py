"""Attention as the model was published, whatever of transformers' implementations of it a checkpoint asks for."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from small_models import Expected, ask, assert_agrees, load, save, tokens

HEADS, WIDTH = 4, 64
FALCON = {
    "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "max_position_embeddings": 96,
    "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
}  # fmt: skip
"""The form of Falcon-RW, the Falcon models that were published with ALiBi."""


def falcon_logits(weights: dict[str, Tensor], ids_L: Tensor) -> Tensor:
    """Full logits [L, V] of the one layer, in float64, from "Train Short, Test Long" (Press et al. 2022), section 3.

    Head h adds −2^(−8h/H) · (i − j) to the product of query i and key j. As Falcon's makers published it, the sum of
    both is divided by the square root of a head's size.
    """
    weights = {name: weight.double() for name, weight in weights.items()}

    def linear(name: str, input_LD: Tensor) -> Tensor:
        return input_LD @ weights[f"transformer.h.0.{name}.weight"].T + weights[f"transformer.h.0.{name}.bias"]

    def norm(name: str, input_LD: Tensor) -> Tensor:
        name = f"transformer.{name}"
        return layer_norm(input_LD, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    hidden_LD = weights["transformer.word_embeddings.weight"][ids_L]
    query_HLD, key_HLD, value_HLD = (
        linear("self_attention.query_key_value", norm("h.0.input_layernorm", hidden_LD))
        .unflatten(1, (HEADS, 3, -1))
        .permute(2, 1, 0, 3)
    )
    distance_LL = torch.arange(len(ids_L))[:, None] - torch.arange(len(ids_L))
    slopes_H = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS)
    scores_HLL = query_HLD @ key_HLD.mT - slopes_H[:, None, None] * distance_LL
    scores_HLL = (scores_HLL / math.sqrt(WIDTH // HEADS)).masked_fill(distance_LL < 0, -torch.inf)
    attention_LD = (scores_HLL.softmax(2) @ value_HLD).permute(1, 0, 2).flatten(1)
    hidden_LD = hidden_LD + linear("self_attention.dense", attention_LD)
    inner_LD = gelu(linear("mlp.dense_h_to_4h", norm("h.0.post_attention_layernorm", hidden_LD)))
    hidden_LD = hidden_LD + linear("mlp.dense_4h_to_h", inner_LD)
    return norm("ln_f", hidden_LD) @ weights["transformer.word_embeddings.weight"].T


def ask_for_attention(directory, name):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation": name}))


QUESTIONS = [(tokens(length, length), [tokens(30, 1), tokens(3, 2)], [0.5]) for length in (1, 9, 60)]


@pytest.mark.parametrize("asked_for", [None, "eager", "flash_attention_2"])
def test_falcon_with_alibi_has_the_values_of_the_published_computation(asked_for, tmp_path):
    directory = save("falcon", tmp_path / "falcon", **FALCON)
    if asked_for:
        ask_for_attention(directory, asked_for)
    weights = load_file(directory / "model.safetensors")
    for (prompt, completions, _), records in zip(QUESTIONS, ask(load(directory), *QUESTIONS), strict=True):
        for completion, record in zip(completions, records, strict=True):
            logits_LV = falcon_logits(weights, torch.tensor([*prompt, *completion]))
            assert_agrees(record, Expected(logits_LV[len(prompt) - 1 :].numpy(), completion))


def test_a_cap_on_attention_logits_stays_when_the_config_asks_for_an_implementation_that_drops_it(reference, tmp_path):
    directory = save("gemma2", tmp_path / "gemma2")
    ask_for_attention(directory, "sdpa")
    for (prompt, completions, _), records in zip(QUESTIONS, ask(load(directory), *QUESTIONS), strict=True):
        for completion, record in zip(completions, records, strict=True):
            assert_agrees(record, reference("gemma2")(prompt, completion))
