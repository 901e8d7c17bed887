"""A checkpoint directory on this machine: whether it can be a teacher, its weights' digest, and the dtype it runs in.

No weight is loaded here but to merge an adapter, and the network is used for a hub id only.
"""

import hashlib
import pickle
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from pydantic import ValidationError

from tvkd_server.teachers import weights
from tvkd_shared.adapter import is_adapter
from tvkd_shared.errors import InvalidRequest

DTYPES = ("auto", "float32", "bfloat16", "float16")

_NOT_QUANTIZED = "serve what they were made from"
_BESIDE_WEIGHTS = ["*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A causal language model in Hugging Face's layout. `config` is the content of config.json."""

    directory: Path
    name: str
    config: dict[str, Any]

    @classmethod
    def find(cls, model: str | Path, name: str | None = None) -> "Checkpoint":
        """The checkpoint in a directory, or the hub's snapshot when `model` is a hub id. A PEFT adapter's is merged.

        Raises InvalidRequest when there is none, or when it cannot be a causal LM's.
        """
        directory = Path(model).expanduser()
        weights.refuse_gguf(directory)
        online = not directory.is_dir()
        if online:
            directory = _snapshot(model)
        elif name is None:
            name = directory.resolve().name
        if is_adapter(directory):
            from tvkd_server.teachers.adapter import merged  # noqa: PLC0415 - most checkpoints are whole

            directory = merged(directory, online=online)
        if not (directory / "config.json").exists():
            other = weights.other_form(directory)
            raise InvalidRequest(f"{model} has no config.json, which save_pretrained writes{other}")
        config = weights.json_object(directory / "config.json")
        _refuse_other_models(model, config)
        checkpoint = cls(directory, name or str(model), config)
        if checkpoint.quantization is not None and checkpoint.quantization_method is None:
            raise InvalidRequest(
                f"{model} has quantised weights, and config.json names no quant_method; MLX writes such checkpoints, "
                f"and only MLX reads them: {_NOT_QUANTIZED}"
            )
        return checkpoint

    def weight_files(self) -> list[Path]:
        """The files that hold the weights, by name. Raises InvalidRequest when one is missing or not whole."""
        return weights.files(self.directory)

    def weights_digest(self) -> str:
        """Digest of the weight files' content, hashed once: about a second a gigabyte the first time."""
        digests = [weights.file_digest(path) for path in self.weight_files()]
        return hashlib.blake2b("".join(digests).encode(), digest_size=weights.DIGEST_BYTES).hexdigest()

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model, where the checkpoint has other parts too."""
        text = self.config.get("text_config")
        return text if text and isinstance(text, dict) else self.config

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the weights are quantised, as config.json or NVIDIA's ModelOpt says it; None when they are not."""
        places = [self.config.get(name) for name in ("quantization_config", "compression_config", "quantization")]
        for place in (*places, self.text_config.get("quantization_config")):
            if place and isinstance(place, dict):
                return place
        modelopt = self.directory / "hf_quant_config.json"
        return weights.json_object(modelopt) | {"quant_method": "modelopt"} if modelopt.exists() else None

    @property
    def quantization_method(self) -> str | None:
        """The name of the method that the weights are quantised by, where one is given."""
        quantization = self.quantization or {}
        if {"load_in_4bit", "load_in_8bit"} & quantization.keys():
            return "bitsandbytes"
        method = quantization.get("quant_method")
        return str(method) if method else None

    def refusal(self, start: str, reason: str) -> InvalidRequest:
        """Why an engine cannot serve the checkpoint, and what to do where that follows from its quantisation."""
        if self.quantization is not None:
            reason += (
                f"; its weights are quantised ({self.quantization_method}): try the other engine, or {_NOT_QUANTIZED}"
            )
        return InvalidRequest(f"{start}: {reason}")

    @property
    def ropes(self) -> list[dict[str, Any]]:
        """How rotary positions are computed and scaled: in all layers, or in each kind of layer."""
        rope = self.text_config.get("rope_parameters") or self.text_config.get("rope_scaling") or {}
        return [part for part in rope.values() if isinstance(part, dict)] or [rope]

    def attention_bounds(self) -> list[int]:
        """Lengths in tokens beyond which the model computes something else: windows, chunks, and scaled positions."""
        text, original = self.text_config, "original_max_position_embeddings"
        windows = [text.get("sliding_window"), text.get("attention_chunk_size")]
        bounds = [*windows, text.get(original), *(rope.get(original) for rope in self.ropes)]
        return sorted({bound for bound in bounds if isinstance(bound, int) and bound > 0})

    def served_dtype(self, dtype: str, *, on_cpu: bool) -> str:
        """The dtype to ask any engine for: one rule for all, because it is part of the teacher's id.

        "auto" is float32 on a CPU, where bfloat16 is several times slower. On a GPU, and for quantised weights, it is
        the checkpoint's own, and stays "auto" when its config names none.
        Raises InvalidRequest for a dtype that no engine serves.
        """
        if dtype not in DTYPES:
            raise InvalidRequest(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        if dtype != "auto":
            return dtype
        if on_cpu and self.quantization is None:
            return "float32"
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "auto")


def _snapshot(model: str | Path) -> Path:
    repository = str(model)
    if isinstance(model, Path) or repository.startswith(("/", ".", "~")) or repository.count("/") > 1:
        raise InvalidRequest(f"no directory {model} exists; give a checkpoint's directory or a hub id such as org/name")
    try:
        folder = _download(repository, "*.safetensors")
        if not any(folder.glob("*.safetensors")):
            folder = _download(repository, "pytorch_model*.bin")
    except (HFValidationError, OSError) as error:
        raise InvalidRequest(f"{repository} is not a directory, nor on the hub: {first_line(error)}") from error
    return folder


def _download(repository: str, weights_pattern: str) -> Path:
    """What a teacher needs of a repository, without the weights in its makers' own form that many have too."""
    wanted, others = [*_BESIDE_WEIGHTS, weights_pattern], ["consolidated*", "*/*"]
    return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=others))


def _refuse_other_models(model: str | Path, config: dict[str, Any]) -> None:
    kind = str(config.get("model_type"))
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - it takes seconds, and only a teacher needs it
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    tables = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    known = {name for table in tables for name in _names(table.get(kind))}
    if not known:
        custom = " (its own code is never run)" if "auto_map" in config else ""
        raise InvalidRequest(
            f"{model} is of type {kind} by config.json, which transformers has no causal LM for{custom}"
        )
    architectures = config.get("architectures") or []
    if architectures and not known & set(architectures):
        raise InvalidRequest(
            f"{model} is a {', '.join(architectures)}, not a causal LM such as {' or '.join(sorted(known))}"
        )


def _names(classes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (classes,) if isinstance(classes, str) else classes or ()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name when it has none.

    Where the first line is not the reason, as in what pydantic and huggingface_hub raise, the reason is there too.
    """
    message = str(error)
    if isinstance(error, ValidationError):
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
    elif isinstance(error, KeyError):
        message = f"{message} is not there, or not known"
    elif isinstance(error, pickle.UnpicklingError):
        message = "a .bin file holds more than tensors, and no code is run; save it as safetensors where you trust it"
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines[: 2 if lines[0].endswith(":") else 1]), 300, placeholder=" …")
