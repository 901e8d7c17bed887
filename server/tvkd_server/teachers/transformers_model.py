"""The model of a checkpoint under transformers, loaded with all of its weights and no others, or refused."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.errors import InvalidRequest


def load_model(checkpoint: Checkpoint, dtype: str, device: torch.device) -> Any:
    """The model of a checkpoint's directory. Raises InvalidRequest when its weights and config.json do not fit."""
    local = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(checkpoint.directory, **local)
    # transformers' own choice, sdpa as a rule, would drop the cap that some models put on attention logits. Falcon's
    # eager code adds ALiBi twice. So what config.json may ask for in `_attn_implementation` is not followed.
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    config._attn_implementation = "eager" if capped else None
    method = checkpoint.quantization_method
    if method and not {method, f"{method}_4bit"} & AUTO_QUANTIZER_MAPPING.keys():  # it would load them as plain weights
        raise checkpoint.refusal(f"{checkpoint.directory} does not load", "transformers does not know such weights")
    generation: Any = GenerationConfig
    loaded: Any = _model_class(checkpoint).from_pretrained(
        checkpoint.directory,
        config=config,
        dtype=dtype,
        device_map=device if method else None,
        generation_config=generation(),  # the checkpoint's own is of no use, and may be broken
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, in a line that names them
        **local,
    )
    model, loading_info = loaded
    _refuse_what_does_not_fit(checkpoint, model, loading_info)
    if method:
        # compressed-tensors unpacks the weights when the whole model first runs; a teacher runs its parts.
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device))
    # Llama 4 and Mllama keep a whole causal LM beside the part that reads images.
    inner = model._modules.get("language_model")
    model = inner if inner is not None and inner.get_output_embeddings() is not None else model
    return (model if method else model.to(device)).eval()


def _model_class(checkpoint: Checkpoint) -> Any:
    """The class that the checkpoint was saved by, where it is one that reads images too; else that of a causal LM."""
    names = checkpoint.config.get("architectures") or [""]
    return getattr(transformers, names[0]) if names[0].endswith("ForConditionalGeneration") else AutoModelForCausalLM


def _refuse_what_does_not_fit(checkpoint: Checkpoint, model: Any, loading_info: dict[str, Any]) -> None:
    """Raises InvalidRequest for weights of another shape, that are not there, or that the model has no use for."""
    # Weights of a part that the model lacks, such as layers for speculation, are no sign that something is wrong.
    modules = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    unused = sorted(name for name in loading_info["unexpected_keys"] if name.rpartition(".")[0] in modules)
    if checkpoint.quantization is not None:  # GPTQ's have biases that are 0
        unused = [name for name in unused if name.endswith("scale")]
    if unused:
        raise checkpoint.refusal(
            f"{checkpoint.directory} would not have its own values",
            f"by config.json it is a {type(model).__name__} that makes no use of {_first(unused)}, so config.json is "
            "another model's, or does not say how the weights are quantised",
        )
    if loading_info["mismatched_keys"]:
        name, shape, wanted = min(loading_info["mismatched_keys"])
        raise InvalidRequest(
            f"{checkpoint.directory}: {name} is {list(shape)} in the weights and {list(wanted)} by config.json, so one "
            "of the files is another model's; copy both again"
        )
    if loading_info["missing_keys"]:
        missing, others = (_first(sorted(loading_info[f"{kind}_keys"])) for kind in ("missing", "unexpected"))
        instead = f", and unknown ones such as {others}" if others else ""
        raise InvalidRequest(f"{checkpoint.directory} has no weights for {missing}{instead}; save the whole causal LM")


def _first(names: list[str]) -> str:
    return ", ".join(names[:1]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
