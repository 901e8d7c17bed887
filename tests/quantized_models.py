"""Tiny quantised checkpoints, in the forms that people have, made without the packages that quantise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from small_models import save

GROUP = 32
"""Weights that share a scale."""

Form = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""From a linear layer's weight [out, in] to its tensors by the last part of their names, and the weight they mean."""


def _steps(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps from −7 to 7 as [out, in], the scale of each group as [out, groups], and their product."""
    groups = weight.unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(2, keepdim=True) / 7).half().float()
    steps = (groups / scales).round()
    return steps.flatten(1).long(), scales[:, :, 0], (steps * scales).flatten(1)


def _packed(nibbles: Tensor) -> Tensor:
    """Numbers from 0 to 15, eight neighbours of a row in an int32, the first in the lowest bits."""
    shifted = nibbles.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    return shifted.sum(2).to(torch.uint32).view(torch.int32).contiguous()


def compressed_int4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scales, rounded = _steps(weight)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": _packed(steps + 8), "weight_scale": scales, "weight_shape": shape}, rounded


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scales, rounded = _steps(weight)
    zeros = torch.full(scales.T.shape, 7)  # the format keeps the zero point less one
    tensors = {"qweight": _packed(steps + 8).T, "qzeros": _packed(zeros), "scales": scales.T.half()}
    return tensors | {"g_idx": (torch.arange(weight.shape[1]) // GROUP).int()}, rounded


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scales, rounded = _steps(weight)
    columns = (steps.T + 8).unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)
    zeros = torch.full(scales.T.shape, 8)
    return {"qweight": _packed(columns), "qzeros": _packed(zeros), "scales": scales.T.half()}, rounded


def mlx(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scales, rounded = _steps(weight)
    return {"weight": _packed(steps + 8), "scales": scales, "biases": -8 * scales}, rounded


def _float8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = weight.abs().max() / 448
    steps = (weight / scale).to(torch.float8_e4m3fn)
    return steps, scale, steps.float() * scale


def float8_blocks(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scale, rounded = _float8(weight)
    blocks = [-(-size // 128) for size in weight.shape]
    return {"weight": steps, "weight_scale_inv": scale.expand(blocks).contiguous()}, rounded


def float8_static(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    steps, scale, rounded = _float8(weight)
    return {"weight": steps, "weight_scale": scale, "input_scale": torch.tensor(1.0)}, rounded


def bitsandbytes_int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1)
    steps = (weight / scale[:, None] * 127).round()
    return {"weight": steps.to(torch.int8), "SCB": scale}, steps * scale[:, None] / 127


_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
FORMS: dict[str, tuple[dict[str, Any], Form]] = {
    "compressed-tensors": ({"format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
                            "config_groups": {"all": {"targets": ["Linear"], "weights": _INT4}}}, compressed_int4),
    "compressed-tensors with head": ({"quant_method": "compressed-tensors", "format": "pack-quantized",
                                      "quantization_status": "compressed", "ignore": [], "config_groups": {
                                      "all": {"targets": ["Linear", "re:.*lm_head"], "weights": _INT4}}},
                                     compressed_int4),
    "gptq": ({"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, gptq),
    "awq": ({"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, awq),
    "fp8": ({"activation_scheme": "dynamic", "weight_block_size": [128, 128]}, float8_blocks),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, float8_static),
    "modelopt": ({"quant_algo": "FP8", "ignore": ["lm_head"]}, float8_static),
    "bitsandbytes": ({"load_in_8bit": True}, bitsandbytes_int8),
    "exl2": ({"bits": 4.0}, gptq),
    "mlx": ({"quant_method": None, "group_size": GROUP, "bits": 4}, mlx),
}  # fmt: skip
"""The settings in config.json, whose method is the form's name if they name none, and the form of a linear layer."""


def save_quantized(form: str, directory: Path) -> tuple[Path, Path]:
    """A small Llama in this form, and the same weights as plain float32, whose values it must have."""
    plain, quantized = save("llama", directory / "plain", **_SIZES), directory / "quantized"
    settings, quantize = FORMS[form]
    weights, packed = load_file(plain / "model.safetensors"), {}
    for name, weight in weights.items():
        stem, _, last = name.rpartition(".")
        if last != "weight" or not stem.endswith(("_proj", "lm_head" if form.endswith("head") else "_proj")):
            packed[name] = weight
            continue
        tensors, weights[name] = quantize(weight)
        packed |= {f"{stem}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    quantized.mkdir()
    save_file(packed, quantized / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text()) | {"dtype": "float16"}
    (quantized / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": form} | settings})
    )
    return quantized, plain


_SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
"""Multiples of what the kernels take."""
