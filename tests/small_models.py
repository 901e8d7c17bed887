"""Small random models of several architectures, and an independent computation of what a teacher must answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import Teacher
from tvkd_server.teachers.transformers_teacher import TransformersTeacher
from tvkd_shared.record import Record, column_names
from tvkd_shared.value import entropy, value

VOCABULARY = 503
LONGEST = 96

_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": LONGEST,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen2": _SIZES,
    # The window is shorter than the sequences; the caps are low enough to bend the logits.
    "gemma2": _SIZES
    | {"sliding_window": 8, "query_pre_attn_scalar": 32, "final_logit_softcapping": 6.0, "attn_logit_softcapping": 2.0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": LONGEST},
    "mistral": _SIZES | {"sliding_window": 8},
    "cohere": _SIZES | {"logit_scale": 0.25},
    "granite": _SIZES | {"logits_scaling": 0.3},
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 64, "max_position_embeddings": LONGEST},
    "mixtral": _SIZES | {"num_local_experts": 4},
    # No rows of keys and values to share, no positions, frequencies that depend on the length.
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 2},
    "phi3": _SIZES
    | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16,
                           "long_factor": [4.0] * 16},
       "original_max_position_embeddings": 24},
}  # fmt: skip

SHARED = ("llama", "qwen2", "gemma2", "gpt2", "mistral", "cohere", "granite", "opt", "mixtral")
UNSHARED = ("mamba", "bloom", "phi3")


def save(architecture: str, directory: Path, **changes: Any) -> Path:
    """Save a random float32 model whose logits are spread over several units."""
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings = (
        {"vocab_size": VOCABULARY, "initializer_range": 0.3} | special | ARCHITECTURES.get(architecture, {}) | changes
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**settings))
    return save_with_biases(model, directory)


def save_with_biases(model: Any, directory: Path) -> Path:
    """Save a model that was just made, with biases that are not 0, so that one which is left out is noticed."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "norm" not in name:
                weight.normal_(std=0.1)
    model.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Expected:
    """What the definitions say of one completion, float64, from full logits (S, V) of the sequence alone."""

    logits: np.ndarray
    completion: Sequence[int]

    def values(self, temperature: float) -> np.ndarray:
        return value(self.logits, temperature)

    @property
    def action_logits(self) -> np.ndarray:
        return self.logits[np.arange(len(self.completion)), self.completion]

    @property
    def entropies(self) -> np.ndarray:
        return entropy(self.logits)


class Reference:
    """The model as transformers gives it: one sequence a forward, no cache, no padding, full logits."""

    def __init__(
        self, directory: Path, attention: str = "eager", *, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention)
        self.model = model.to(device).eval()

    @torch.no_grad()
    def __call__(self, prompt: Sequence[int], completion: Sequence[int]) -> Expected:
        ids_1L = torch.tensor([[*prompt, *completion]], device=self.model.device)
        logits_LV = self.model(ids_1L, use_cache=False).logits[0]
        return Expected(logits_LV[len(prompt) - 1 :].double().cpu().numpy(), completion)


def assert_agrees(record: Record, expected: Expected, tolerance: float = 1e-4) -> None:
    for temperature in record.temperatures:
        np.testing.assert_allclose(record.value(temperature), expected.values(temperature), rtol=0, atol=tolerance)
    np.testing.assert_allclose(record.action_logits, expected.action_logits, rtol=0, atol=tolerance)
    np.testing.assert_allclose(record.entropies, expected.entropies, rtol=0, atol=tolerance)


def tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def load(directory: Path | str, **settings: Any) -> TransformersTeacher:
    """The teacher of a directory, on the CPU if nothing else is set."""
    return TransformersTeacher.load(ServeSettings(model=str(directory), **{"device": "cpu"} | settings))


Asked = tuple[Sequence[int], Sequence[Sequence[int]], Sequence[float]]


async def score_all(teacher: Teacher, questions: Sequence[Asked], **options: Any) -> list[Any]:
    """Answers to (prompt, completions, temperatures) asked all at once; `options` are those of `asyncio.gather`."""
    calls = [teacher.score(prompt, completions, column_names(taus)) for prompt, completions, taus in questions]
    return await asyncio.gather(*calls, **options)


def ask(teacher: Teacher, *questions: Asked) -> list[list[Record]]:
    """The same from a synchronous test."""
    return asyncio.run(score_all(teacher, questions))


def ask_once(teacher: Teacher, questions: Sequence[Asked]) -> list[list[Record]]:
    """The same, and the teacher is closed, which an engine with processes of its own needs."""

    async def ask_and_close() -> list[list[Record]]:
        answers = await score_all(teacher, questions)
        await teacher.close()
        return answers

    return asyncio.run(ask_and_close())
