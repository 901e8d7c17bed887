"""What a teacher says of itself: made from its checkpoint, and from what its engine did with it."""

from typing import Any

from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.limits import TEMPERATURES
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_shared.key import teacher_id
from tvkd_shared.wire import TeacherInfo


def teacher_info(
    checkpoint: Checkpoint, tokenizer: Tokenizer, *, dtype: Any, quantization: str | None = None, **served: Any
) -> TeacherInfo:
    """The same for every engine but for `served`, which says what one engine is and how long a sequence it holds.

    dtype        torch's, as the engine runs
    quantization what the engine was asked to do to weights that the checkpoint does not hold quantised
    """
    dtype_name = str(dtype).removeprefix("torch.")
    saved = checkpoint.config.get("quantization_config")
    return TeacherInfo(
        id=teacher_id(checkpoint.weights_digest(), checkpoint.config, dtype_name, saved or quantization),
        name=checkpoint.name,
        dtype=dtype_name,
        quantization=str(saved.get("quant_method", "unnamed")) if saved else quantization,
        tokenizer_digest=tokenizer.digest,
        chat_template_digest=tokenizer.chat_template_digest,
        temperatures=TEMPERATURES,
        **served,
    )
