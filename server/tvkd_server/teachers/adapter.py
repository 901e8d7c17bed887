"""A PEFT adapter as a checkpoint: merged into its base model once, and kept in the user's cache folder."""

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import torch

from tvkd_server.teachers.checkpoint import Checkpoint, first_line
from tvkd_server.teachers.transformers_model import load_model
from tvkd_server.teachers.weights import check_whole, file_digest
from tvkd_shared.adapter import CONFIG, base_folder, check_fit, read_config
from tvkd_shared.errors import InvalidRequest, TVKDError

_logger = logging.getLogger(__name__)

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_GENERATION = "generation_config.json"
_TOKENIZER = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "*_tokens*.json", "*.jinja")


def merged(adapter: Path, *, online: bool) -> Path:
    """The folder of the adapter's base model with the adapter in its weights, in the base's own dtype.

    It is made at the first call, and again when the adapter or its base has changed. `online` allows to look for the
    base on the hub; otherwise it is on this machine. Raises InvalidRequest, in one line, when something is missing or
    does not go together.
    """
    config = read_config(adapter)
    weights = next((adapter / name for name in _WEIGHTS if (adapter / name).exists()), None)
    if weights is None:
        raise InvalidRequest(f"{adapter} has no weights of the adapter; tvkd looked for {', '.join(_WEIGHTS)}")
    check_whole(weights)
    base = Checkpoint.find(base_folder(adapter, online=online))
    if base.quantization is not None:
        raise InvalidRequest(
            f"adapter {adapter} names {base.directory}, which is quantised, and a sum of both would be rounded again: "
            f"write the base as it was before into base_model_name_or_path of {CONFIG}"
        )
    tokenizer = adapter if (adapter / "tokenizer_config.json").exists() else base.directory
    # The base is loaded without its generation config, which names the tokens that end a completion.
    found = [*base.directory.glob(_GENERATION), *(file for name in _TOKENIZER for file in tokenizer.glob(name))]
    beside = sorted({file for file in found if file.is_file()})
    parts = [json.dumps(config, sort_keys=True), json.dumps(base.config, sort_keys=True), base.weights_digest()]
    parts += [file_digest(weights), *(f"{file.name} {file_digest(file)}" for file in beside)]
    name = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
    target = platformdirs.user_cache_path("tvkd") / "merged" / name
    if target.is_dir():
        return target
    _logger.info("merging adapter %s into %s, once; the result is kept in %s", adapter, base.directory, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="draft-") as folder:
            draft = Path(folder) / "model"
            _merge(adapter, base).save_pretrained(draft)
            (draft / _GENERATION).unlink(missing_ok=True)
            for file in beside:
                shutil.copy(file, draft)
            if not target.is_dir():  # another process may have been first
                draft.rename(target)
    except TVKDError:
        raise
    except Exception as error:  # PEFT, transformers and the disk may raise anything
        raise InvalidRequest(
            f"adapter {adapter} cannot be merged into {base.directory}: {first_line(error)}"
        ) from error
    return target


def _merge(adapter: Path, base: Checkpoint) -> Any:
    try:
        from peft import PeftConfig, PeftModel  # noqa: PLC0415 - only servers of adapters need it
        from peft.utils.save_and_load import load_peft_weights  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest(f"{adapter} is an adapter, and merging it needs PEFT: pip install peft") from error
    model = load_model(base, "auto", torch.device("cpu"))
    _resize(model, load_peft_weights(str(adapter), device="cpu"))
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = table.weight is head.weight
    if tied:  # PEFT would add to both what was trained for one
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    adapted = PeftModel(model, config)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise InvalidRequest(f"adapter {adapter} is of type {config.peft_type.value}, which is no change of weights")
    check_fit(adapter, base.directory, adapted.load_adapter(str(adapter), "default"))
    whole: Any = adapted.merge_and_unload(safe_merge=True)
    if tied:
        table, head = whole.get_input_embeddings(), whole.get_output_embeddings()
        whole.config.tie_word_embeddings = torch.equal(table.weight, head.weight)
        if whole.config.tie_word_embeddings:
            head.weight = table.weight
    return whole


def _resize(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give the model as many rows of embeddings as the adapter has, which tokens that were added make more."""
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = [name for name, module in model.named_modules() if id(module) in tables]
    saved = [weights[key] for name in names for key in weights if key.endswith(f".{name}.weight")]
    if saved:
        model.resize_token_embeddings(saved[0].size(0), mean_resizing=False)
