"""The embedded engine: any causal-LM directory under transformers, on the CPU or one GPU."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.backbone import micro_batches
from tvkd_server.teachers.checkpoint import Checkpoint, first_line
from tvkd_server.teachers.teacher import Question, Teacher
from tvkd_server.teachers.teacher_pass import Answer, TeacherPass
from tvkd_server.teachers.transformers_model import load_model
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import Float32

_LONGEST = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""The names by which configurations give the longest sequence; MPT has the second, Whisper's decoder the third."""

NO_LONGEST = 2**20
"""Longest sequence of a model whose config names none, such as a state-space model: a bound on one request."""


@dataclass(slots=True, eq=False)
class _Call:
    question: Question
    answer: asyncio.Future[list[Float32]]


class TransformersTeacher(Teacher):
    """Concurrent calls are batched: a worker takes all that wait, and runs micro-batches in one thread of its own."""

    engine, engine_version = "transformers", f"{transformers.__version__} (torch {torch.__version__})"

    def _load(self, checkpoint: Checkpoint, settings: ServeSettings) -> tuple[Any, int, int]:
        device = _device(settings.device)
        model = load_model(checkpoint, checkpoint.served_dtype(settings.dtype, on_cpu=device.type == "cpu"), device)
        config = model.config.get_text_config(decoder=True)
        longest = next((size for name in _LONGEST if (size := getattr(config, name, None))), NO_LONGEST)
        self._pass = TeacherPass(model, longest, settings)
        self._max_batch_tokens = settings.max_batch_tokens
        self.window = 2 * settings.max_batch_tokens
        self._waiting: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "teacher")
        return model.dtype, config.vocab_size, longest

    async def _numbers(self, question: Question) -> list[Float32]:
        call = _Call(question, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await call.answer

    async def _stop(self) -> None:
        if self._worker is not None and not self._worker.done():
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting, []
            for batch in micro_batches([call.question for call in calls], self._max_batch_tokens):
                # What nobody waits for any more is not read.
                if batch_calls := [calls[index] for index in batch if not calls[index].answer.done()]:
                    await self._run(batch_calls)

    async def _run(self, calls: list[_Call]) -> None:
        """Answer the calls by one pass, or say to each why it has no answer."""
        loop, questions = asyncio.get_running_loop(), [call.question for call in calls]
        answers: list[Answer]
        if self._closed:
            answers = [TeacherUnavailable("the teacher is closing; try again when it is back") for _ in calls]
        else:
            try:
                answers = await loop.run_in_executor(self._thread, self._pass.score, questions)
            except Exception as error:  # a pass may fail in any way; its caller is told, and other calls go on
                if len(calls) > 1:
                    for call in calls:
                        await self._run([call])
                    return
                answers = [TeacherUnavailable(f"the pass failed: {type(error).__name__}: {first_line(error)}")]
        for call, answer in zip(calls, answers, strict=True):
            if call.answer.done():  # cancelled meanwhile
                continue
            if isinstance(answer, TeacherUnavailable):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        raise InvalidRequest(f"device {name!r} cannot be used: {first_line(error)}; cpu always can") from error
    return device
