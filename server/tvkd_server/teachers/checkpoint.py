"""A checkpoint directory on this machine: whether it can be a teacher, its weights' digest, and the dtype it runs in.

No weight is loaded here but to merge an adapter, and the network is used for a hub id only.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from pydantic import ValidationError
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tvkd_server.teachers import weights
from tvkd_shared.adapter import is_adapter
from tvkd_shared.errors import InvalidRequest

DTYPES = ("auto", "float32", "bfloat16", "float16")

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
            raise InvalidRequest(f"{model} has no config.json; a checkpoint saved by save_pretrained has one")
        config = weights.json_object(directory / "config.json")
        _refuse_other_models(model, config)
        return cls(directory, name or str(model), config)

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
        return self.config.get("text_config") or self.config

    @property
    def rope(self) -> dict[str, Any]:
        """How rotary positions are computed and scaled."""
        return self.text_config.get("rope_parameters") or self.text_config.get("rope_scaling") or {}

    def attention_bounds(self) -> list[int]:
        """Lengths in tokens beyond which the model computes something else: windows, chunks, and scaled positions."""
        text, original = self.text_config, "original_max_position_embeddings"
        windows = [text.get("sliding_window"), text.get("attention_chunk_size")]
        bounds = [*windows, text.get(original), self.rope.get(original)]
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
        if on_cpu and "quantization_config" not in self.config:
            return "float32"
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "auto")


def _snapshot(model: str | Path) -> Path:
    repository = str(model)
    if isinstance(model, Path) or repository.startswith(("/", ".", "~")) or repository.count("/") > 1:
        raise InvalidRequest(f"no directory {model} exists; give a checkpoint's directory or a hub id such as org/name")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*_BESIDE_WEIGHTS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*_BESIDE_WEIGHTS, "pytorch_model*.bin"]))
    except (HFValidationError, OSError) as error:
        raise InvalidRequest(f"{repository} is not a directory, nor on the hub: {first_line(error)}") from error
    return folder


def _refuse_other_models(model: str | Path, config: dict[str, Any]) -> None:
    kind = str(config.get("model_type"))
    tables = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    known = {name for table in tables for name in _names(table.get(kind))}
    if not known:
        custom = " (its own code is never run)" if "auto_map" in config else ""
        raise InvalidRequest(f"{model} is of type {kind}, which transformers has no causal LM for{custom}")
    architectures = config.get("architectures") or []
    if architectures and not known & set(architectures):
        raise InvalidRequest(
            f"{model} is a {', '.join(architectures)}, not a causal LM such as {' or '.join(sorted(known))}"
        )


def _names(classes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (classes,) if isinstance(classes, str) else classes or ()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name when it has none.

    A setting that pydantic refused is named by the reason, which is not in the first line.
    """
    message = str(error)
    if isinstance(error, ValidationError):
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
    return next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
