"""The dtype that a checkpoint is served in: one rule for every engine, for it is part of the teacher's id."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from tvkd_shared.errors import InvalidRequest

DType = Literal["auto", "float32", "bfloat16", "float16"]


def served_dtype(asked: str, config: Mapping[str, Any], *, on_cpu: bool) -> str:
    """The dtype to ask the engine for. "auto" is float32 on a CPU, where bfloat16 is several times slower.

    Elsewhere, and for quantised weights, "auto" is the checkpoint's own, or stays "auto" when its config names none.
    Raises InvalidRequest for a dtype that no engine serves.
    """
    if asked not in get_args(DType):
        raise InvalidRequest(f"dtype {asked!r} is unknown; known: {', '.join(get_args(DType))}")
    if asked != "auto":
        return asked
    if on_cpu and "quantization_config" not in config:
        return "float32"
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")
