"""Real vLLM engines on the CPU, one a module: a start costs 15 to 45 s."""

import asyncio
import os

import pytest

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class InOneLoop:
    """A teacher asked from synchronous tests: the engine belongs to the event loop that first used it."""

    def __init__(self, teacher):
        self.teacher = teacher
        self._loop = asyncio.new_event_loop()

    def ask(self, *questions):
        """Answers to (prompt, completions, temperatures) asked all at once, or the error of each."""

        async def together():
            return await asyncio.gather(*(self.teacher.score(*q) for q in questions), return_exceptions=True)

        return self._loop.run_until_complete(together())

    def close(self):
        self._loop.run_until_complete(self.teacher.close())
        self._loop.close()


@pytest.fixture(scope="module")
def engine():
    """Starts an engine on a directory with the given settings; the one before it is closed."""
    running = []

    def start(directory, **settings):
        from tvkd_server.teachers.vllm_teacher import VLLMTeacher

        for one in running:
            one.close()
        running[:] = [InOneLoop(VLLMTeacher.load(directory, **settings))]
        return running[0]

    yield start
    for one in running:
        one.close()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Directory of a small random model whose longest sequence is 320 tokens, ten blocks of the key-value cache."""
    from small_models import save

    def make(name, **changes):
        longest = "n_positions" if name == "gpt2" else "max_position_embeddings"
        return save(name, tmp_path_factory.mktemp("models") / name, **{longest: 320} | changes)

    return make
