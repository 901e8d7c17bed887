"""A student given as a PEFT adapter's folder: it trains on, and the adapter as it was is the reference."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from tvkd_shared.adapter import base_folder, check_fit


def load_adapter(folder: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """The adapter beside its base model, to train on. `options` are those of TRL's way to load a model.

    TRL keeps a copy of the adapter, so its reference is the model as it was given. No network is used: a base that is a
    hub id has to be in the hub's cache. Raises InvalidRequest when the adapter does not fit its base.
    """
    from peft import PeftConfig, PeftModelForCausalLM  # noqa: PLC0415 - most students are whole models
    from trl.trainer.utils import create_model_from_path  # noqa: PLC0415

    base = str(base_folder(folder))
    config = PeftConfig.from_pretrained(folder)
    model: Any = create_model_from_path(base, **options)
    if len(tokenizer) > model.get_input_embeddings().weight.size(0):
        model.resize_token_embeddings(len(tokenizer))
    config.inference_mode = False
    adapted: Any = PeftModelForCausalLM(model, config)
    check_fit(folder, base, adapted.load_adapter(folder, "default", is_trainable=True))
    adapted.name_or_path = folder
    return adapted
