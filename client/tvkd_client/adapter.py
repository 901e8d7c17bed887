"""A student given as a PEFT adapter's folder: it trains on, and the adapter as it was is the reference."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase

from tvkd_shared.errors import InvalidRequest

CONFIG = "adapter_config.json"


def is_adapter(folder: str) -> bool:
    """Whether it is an adapter's folder on this machine."""
    return (Path(folder) / CONFIG).is_file()


def base_folder(folder: str) -> str:
    """The folder of the model that an adapter changes; that of a hub id is in the hub's cache.

    Raises InvalidRequest when the adapter names none, or one that is not on this machine.
    """
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{folder}/{CONFIG} is not JSON: {error}") from error
    base = config.get("base_model_name_or_path")
    if not base:
        raise InvalidRequest(f"{folder}/{CONFIG} does not name the base model; set base_model_name_or_path there")
    if Path(base).is_dir():
        return str(base)
    try:
        return str(snapshot_download(base, revision=config.get("revision"), local_files_only=True))
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"adapter {folder} belongs to base model {base}, which is no folder here and not in the hub's cache: "
            f"get it (`hf download`), or write its folder into base_model_name_or_path of {CONFIG}"
        ) from error


def load_adapter(folder: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """The adapter beside its base model, to train on. `options` are those of TRL's way to load a model.

    TRL keeps a copy of the adapter, so its reference is the model as it was given. No network is used: a base that is a
    hub id has to be in the hub's cache. Raises InvalidRequest when the adapter does not fit its base.
    """
    from peft import PeftConfig, PeftModelForCausalLM  # noqa: PLC0415 - most students are whole models
    from trl.trainer.utils import create_model_from_path  # noqa: PLC0415

    config, base = PeftConfig.from_pretrained(folder), base_folder(folder)
    if config.task_type not in (None, "CAUSAL_LM"):
        raise InvalidRequest(f"adapter {folder} is for {config.task_type}, not for a causal LM")
    model: Any = create_model_from_path(base, **options)
    if len(tokenizer) > model.get_input_embeddings().weight.size(0):
        model.resize_token_embeddings(len(tokenizer))
    config.inference_mode = False
    adapted: Any = PeftModelForCausalLM(model, config)
    result = adapted.load_adapter(folder, "default", is_trainable=True)
    # PEFT writes some embeddings three times, and reads them once.
    copies = {"modules_to_save", "original_module"}
    unread = [name for name in result.unexpected_keys if not copies & set(name.split("."))]
    if wrong := [*result.missing_keys, *unread]:
        raise InvalidRequest(
            f"adapter {folder} does not fit {base}: {len(wrong)} of its weights have no place there or are missing, "
            f"such as {wrong[0]}"
        )
    adapted.name_or_path = folder
    return adapted
