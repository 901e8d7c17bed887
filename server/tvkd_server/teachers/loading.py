"""From settings to a teacher. Only the chosen engine is imported: a server does not need both installed."""

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import Teacher


def load_teacher(settings: ServeSettings) -> Teacher:
    """The teacher of the chosen engine; see `Teacher.load`. Raises InvalidRequest when the engine is not installed."""
    if settings.engine == "vllm":
        from tvkd_server.teachers.vllm_teacher import VLLMTeacher  # noqa: PLC0415

        return VLLMTeacher.load(settings)
    from tvkd_server.teachers.transformers_teacher import TransformersTeacher  # noqa: PLC0415

    return TransformersTeacher.load(settings)
