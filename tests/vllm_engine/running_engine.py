"""A real vLLM engine on the CPU, asked from synchronous tests. A start costs 15 to 45 s."""

import asyncio
import os

from small_models import score_all

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class RunningEngine:
    """The engine belongs to the event loop that first used it, so one loop runs all its questions."""

    def __init__(self, directory, **settings):
        from tvkd_server.settings import ServeSettings
        from tvkd_server.teachers.vllm_teacher import VLLMTeacher

        self.teacher = VLLMTeacher.load(ServeSettings(model=str(directory), engine="vllm", **settings))
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine):
        return self._loop.run_until_complete(coroutine)

    def ask(self, *questions):
        """Answers to (prompt, completions, temperatures) asked all at once, or the error of each."""

        return self.run(score_all(self.teacher, questions, return_exceptions=True))

    def close(self):
        self.run(self.teacher.close())
        self._loop.close()
