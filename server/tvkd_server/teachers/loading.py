"""From settings to a teacher. Each engine is imported when it is asked for: a server needs one of them, not both."""

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import Teacher


def load_teacher(settings: ServeSettings) -> Teacher:
    """The teacher of the chosen engine. Blocking. Raises InvalidRequest when it cannot serve, or is not installed."""
    if settings.engine == "vllm":
        from tvkd_server.teachers.vllm_teacher import VLLMTeacher  # noqa: PLC0415

        return VLLMTeacher.load(
            settings.model,
            name=settings.name,
            dtype=settings.dtype,
            quantization=settings.quantization,
            head_chunk=settings.head_chunk,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            engine_arguments=settings.engine_args,
        )
    from tvkd_server.teachers.transformers_teacher import TransformersTeacher  # noqa: PLC0415

    return TransformersTeacher.load(
        settings.model,
        name=settings.name,
        dtype=settings.dtype,
        device=settings.device,
        max_batch_tokens=settings.max_batch_tokens,
        head_chunk=settings.head_chunk,
    )
