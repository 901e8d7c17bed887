"""A PEFT adapter's folder, as a teacher or a student: its settings, its base model, and whether all of it fits."""

import json
from pathlib import Path
from typing import Any

from tvkd_shared.errors import InvalidRequest

CONFIG = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether it is an adapter's folder on this machine."""
    return (Path(folder) / CONFIG).is_file()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The adapter's settings. Raises InvalidRequest when they are not JSON, name no base, or are no causal LM's."""
    try:
        config: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{folder}/{CONFIG} is not JSON: {error}") from error
    if not config.get("base_model_name_or_path"):
        raise InvalidRequest(f"{folder}/{CONFIG} does not name the base model; set base_model_name_or_path there")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidRequest(f"adapter {folder} is for {config['task_type']}, not for a causal LM")
    return config


def base_folder(folder: str | Path, *, online: bool = False) -> Path:
    """The folder of the model that the adapter changes; that of a hub id is in the hub's cache.

    Only with `online` is it fetched. Raises InvalidRequest when the adapter names none, or one that is not there.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - servers and trainers have it, readers of stores not

    config = read_config(folder)
    base = str(config["base_model_name_or_path"])
    if (directory := Path(base).expanduser()).is_dir():
        return directory
    try:
        return Path(snapshot_download(base, revision=config.get("revision"), local_files_only=not online))
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"adapter {folder} belongs to base model {base}, which is no folder here and not in the hub's cache: "
            f"get it (`hf download`), or write its folder into base_model_name_or_path of {CONFIG}"
        ) from error


def check_fit(folder: str | Path, base: str | Path, loaded: Any) -> None:
    """Raises InvalidRequest when some weights were not read; `loaded` is what PEFT's `load_adapter` returned."""
    # PEFT writes some embeddings three times, and reads them once.
    copies = {"modules_to_save", "original_module"}
    unread = [name for name in loaded.unexpected_keys if not copies & set(name.split("."))]
    if wrong := [*loaded.missing_keys, *unread]:
        raise InvalidRequest(
            f"adapter {folder} does not fit {base}: {len(wrong)} of its weights have no place there or are missing, "
            f"such as {wrong[0]}"
        )
