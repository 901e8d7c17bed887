"""The production engine: vLLM, with the prompt of several completions read once through its prefix cache."""

import asyncio
import contextlib
import os
import threading
from typing import Any

import numpy as np
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tvkd_server.settings import ServeSettings, reference_settings
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.start_check import check_values, probes
from tvkd_server.teachers.teacher import Question, Teacher
from tvkd_server.teachers.vllm_engine import plugin, private
from tvkd_server.teachers.vllm_engine.arguments import refuse_other_positions, refuse_what_changes_values
from tvkd_server.teachers.vllm_engine.failures import FailureFile
from tvkd_server.teachers.vllm_engine.files import refuse_other_weights, refuse_untied_head
from tvkd_server.teachers.vllm_engine.pooler import split_rows
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import Float32


class VLLMTeacher(Teacher):
    """vLLM's engine batches. This class asks it for one sequence a completion and checks that every state came back."""

    engine, engine_version = "vllm", private.VERSION

    def _load(self, checkpoint: Checkpoint, settings: ServeSettings) -> tuple[Any, int, int]:
        refuse_what_changes_values(settings.engine_args)
        refuse_other_positions(checkpoint, settings.max_model_len, on_cpu=private.ON_CPU)
        refuse_other_weights(checkpoint.directory)
        refuse_untied_head(checkpoint.directory)
        dtype = checkpoint.served_dtype(settings.dtype, on_cpu=private.ON_CPU)
        (architecture, *_) = checkpoint.config.get("architectures") or [
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[checkpoint.config["model_type"]]
        ]
        if not private.has_value_model(architecture):
            raise InvalidRequest(f"vLLM {private.VERSION} has no {architecture}; serve it with --engine transformers")
        os.environ[plugin.SERVER] = str(os.getpid())
        if dtype == "float32":
            # Triton multiplies float32 matrices as TF32 otherwise, whose 10 bits move a value by up to 0.02.
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
        self._failures = FailureFile()
        try:
            self._engine = private.Engine(checkpoint.directory, architecture, dtype, settings)
        except Exception as error:
            reason = self._failures.reason(error)
            if not isinstance(error, ValueError):  # which a wrong setting is
                reason += "; if vLLM's code for this model is the cause, serve it with --engine transformers"
            raise checkpoint.refusal(f"vLLM cannot start {settings.model}", reason) from error
        self.window = 4 * self._engine.step_tokens
        # vLLM ties its engine to the event loop that first uses it, so it has one of its own from the start check on.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        return self._engine.dtype, self._engine.vocab_size, self._engine.longest_sequence

    def _check(self, checkpoint: Checkpoint, settings: ServeSettings) -> None:
        lengths = [2 * self._engine.block + 3, *(bound + 9 for bound in checkpoint.attention_bounds())]
        questions = probes(self, lengths, on_cpu=private.ON_CPU)
        try:
            check_values(self, questions, checkpoint, reference_settings(settings.model))
        except BaseException:
            asyncio.run(self.close())
            raise

    async def _numbers(self, question: Question) -> list[Float32]:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._completions(question), self._loop))

    async def _completions(self, question: Question) -> list[Float32]:
        """The first completion goes ahead, and those that can read the prompt from the prefix cache follow."""
        first, *others = question.completions
        shared = [self._cache_serves(question.prompt, first, completion) for completion in others]
        tasks = [asyncio.create_task(self._sequence(question, first, read_prefix_cache=False))]
        try:
            if any(shared):
                await tasks[0]
            tasks += [
                asyncio.create_task(self._sequence(question, completion, read_prefix_cache=share))
                for completion, share in zip(others, shared, strict=True)
            ]
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _cache_serves(self, prompt: list[int], first: list[int], other: list[int]) -> bool:
        """Whether cached blocks of `first` hold some of the prompt for `other`, and none of the states to be scored.

        A state that is read from the cache has no logits. The last token of the prompt is the first state.
        """
        if not self._engine.block:
            return False
        shortest = min(len(first), len(other))
        common = next((i for i in range(shortest) if first[i] != other[i]), shortest)
        cached = (len(prompt) + common) // self._engine.block * self._engine.block
        return 0 < cached < len(prompt)

    async def _sequence(self, question: Question, completion: list[int], *, read_prefix_cache: bool) -> Float32:
        """One completion's numbers, from rows that were seen to be complete and in order.

        Blocks that other questions left in the cache may reach into the completion; it is then read again without it.
        """
        first_state, columns = len(question.prompt) - 1, list(question.columns)
        token_ids = question.prompt + completion
        try:
            rows = await self._engine.rows(
                token_ids, read_prefix_cache=read_prefix_cache, first_state=first_state, columns=columns
            )
        except private.EngineFailed as error:
            raise TeacherUnavailable(f"the engine failed: {self._failures.reason(error)}", retry_after=30) from error
        positions_S, numbers_SK = split_rows(rows)
        expected_S = np.arange(first_state, first_state + len(completion) + 1)
        if np.array_equal(positions_S, expected_S):
            return numbers_SK
        if read_prefix_cache:
            return await self._sequence(question, completion, read_prefix_cache=False)
        raise TeacherUnavailable(
            f"the engine returned {len(positions_S)} states of {len(expected_S)}, or in another order; ask again"
        )

    async def died(self) -> None:
        """Return once the engine's process, or one of its workers, is dead."""
        while not self._engine.dead:  # noqa: ASYNC110 - vLLM offers a flag and no event
            await asyncio.sleep(0.5)

    async def _stop(self) -> None:
        # On its event loop: in a thread, vLLM's own task would see the engine go, and log that as a death.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop))
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _shut_down(self) -> None:
        with contextlib.suppress(Exception):  # a dead engine may fail to shut down; it is gone either way
            self._engine.shutdown()
