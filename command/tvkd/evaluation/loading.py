"""Models and functions that a user names: a checkpoint or adapter to evaluate, and `module:function`."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tvkd_client.adapter import load_adapter
from tvkd_client.preference_tokens import load_tokenizer
from tvkd_client.run_record import FILE
from tvkd_shared.adapter import base_folder, is_adapter
from tvkd_shared.errors import InvalidRequest


def load_model(name: str, dtype: str = "auto") -> Any:
    """A causal LM of a folder, an adapter's folder or a hub id, on the accelerator where there is one.

    Raises InvalidRequest when it cannot be read.
    """
    try:
        if is_adapter(name):
            model = load_adapter(name, load_tokenizer(name), dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"model {name} cannot be read: {reason}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device or "cpu").train(False)


def reference_of(model: str) -> str:
    """What a student began as: the base of an adapter, or what `tvkd train` wrote beside the model.

    Raises InvalidRequest when neither says it.
    """
    if is_adapter(model):
        return str(base_folder(model))
    try:
        return str(json.loads((Path(model) / FILE).read_text(encoding="utf-8"))["student"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidRequest(
            f"{model} has no {FILE} that says what it began as; name the model before its training with --reference"
        ) from error


def load_function(name: str) -> Any:
    """The function of `module:function`; the module may lie in the present folder. Raises InvalidRequest."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InvalidRequest(f"{name!r} is not module:function, such as my_rewards:helpful")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"{name} cannot be read: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise InvalidRequest(f"{name} is {type(function).__name__}, not a function")
    return function
