"""vLLM's plug-in entry point: for every causal LM it knows, a class of the same model that answers values.

`SoftValueLlamaForCausalLM` is `LlamaForCausalLM` with a pooler that calls the model's own `compute_logits`. The classes
are made when vLLM asks for them by name, so that registering imports no model and touches no device.
"""

import multiprocessing
import os
import threading
from functools import cache
from typing import Any

PREFIX = "SoftValue"
SERVER = "TVKD_SERVER_PROCESS"
"""Variable by which the server's process tells the engine's who its parent is."""

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def register() -> None:
    """Called by vLLM in each of its processes, possibly more than once."""
    _end_with_the_server()
    from tvkd_server.teachers.vllm_engine import private  # noqa: PLC0415 - vLLM calls this at its own import

    for architecture in list(private.ModelRegistry.get_supported_archs()):
        if architecture.endswith(_CAUSAL) and not architecture.startswith(PREFIX):
            private.ModelRegistry.register_model(PREFIX + architecture, f"{__name__}:{PREFIX}{architecture}")
            if architecture in private.MODELS_CONFIG_MAP:
                private.MODELS_CONFIG_MAP[PREFIX + architecture] = private.MODELS_CONFIG_MAP[architecture]


def _end_with_the_server() -> None:
    """In the engine's process: end when the server does. vLLM's own would live on and hold the device's memory."""
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(SERVER) != str(parent.pid):
        return
    del os.environ[SERVER]  # the engine's workers have a watch of their own, on the engine

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="tvkd-server-watch", daemon=True).start()


def __getattr__(name: str) -> Any:
    if name.startswith(PREFIX):
        return _value_class(name)
    raise AttributeError(name)


@cache
def _value_class(name: str) -> type:
    from tvkd_server.teachers.vllm_engine import private  # noqa: PLC0415
    from tvkd_server.teachers.vllm_engine.pooler import ValuePooler  # noqa: PLC0415

    base = private.base_class(name.removeprefix(PREFIX))

    class ValueModel(base, private.VllmModelForPooling):  # type: ignore[misc, valid-type]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **rest: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **rest)
            self.pooler = ValuePooler(
                self.compute_logits,
                vllm_config.model_config.hf_text_config.vocab_size,
                vllm_config.additional_config["head_chunk"],
            )

    ValueModel.__name__ = ValueModel.__qualname__ = name
    ValueModel.__module__ = __name__
    return ValueModel
