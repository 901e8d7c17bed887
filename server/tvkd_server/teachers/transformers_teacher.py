"""The embedded engine: any causal-LM directory under transformers, on the CPU or one GPU."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from tvkd_server.teachers.backbone import Question, micro_batches
from tvkd_server.teachers.checkpoint import Checkpoint, first_line
from tvkd_server.teachers.dtype import served_dtype
from tvkd_server.teachers.info import teacher_info
from tvkd_server.teachers.limits import check
from tvkd_server.teachers.teacher_pass import TeacherPass
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable, TVKDError
from tvkd_shared.record import Record
from tvkd_shared.wire import TeacherInfo, TextItem, TokenItem

NO_LONGEST = 2**20
"""Longest sequence of a model whose config names none, such as a state-space model: a bound on one request."""


@dataclass(slots=True, eq=False)
class _Call:
    question: Question
    answer: asyncio.Future[list[Record]]


class TransformersTeacher:
    """Concurrent calls are batched: a worker takes all that wait, and runs micro-batches in one thread of its own."""

    def __init__(
        self, info: TeacherInfo, tokenizer: Tokenizer, teacher_pass: TeacherPass, max_batch_tokens: int
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._pass = teacher_pass
        self._max_batch_tokens = max_batch_tokens
        self._waiting: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._closed = False

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        name: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = 4096,
        head_chunk: int = 256,
        attention: str | None = None,
    ) -> "TransformersTeacher":
        """Load a checkpoint directory, or a hub id. Blocking: call it in a thread.

        dtype            "auto" is the checkpoint's own on a GPU and float32 on a CPU, where bfloat16 is several times
                         slower. The dtype is part of the teacher's id: the same checkpoint served in bfloat16 and
                         in float32 is two teachers, with values of their own.
        device           "auto" is the GPU if there is one
        max_batch_tokens padded tokens in one micro-batch, cached prompts counted for each completion
        head_chunk       states whose logits exist at once: head_chunk × vocabulary × 4 bytes, two to three times over
        attention        transformers' attn_implementation; by default eager for models that cap attention logits
                         (sdpa would drop the cap) and transformers' own choice for all others

        A directory is read without any use of the network, and a checkpoint's own code is never run.
        Raises InvalidRequest in one line when the checkpoint is not there or cannot serve as a teacher.
        """
        checkpoint = Checkpoint.find(model, name)
        place = _device(device)
        dtype = served_dtype(dtype, checkpoint.config, on_cpu=place.type == "cpu")
        try:
            network = _load_network(checkpoint, dtype, place, attention)
            config = network.config.get_text_config(decoder=True)
            longest = getattr(config, "max_position_embeddings", None) or NO_LONGEST
            teacher_pass = TeacherPass(
                network, longest=longest, max_batch_tokens=max_batch_tokens, head_chunk=head_chunk
            )
        except TVKDError:
            raise
        except Exception as error:
            raise InvalidRequest(f"{model} does not load as a teacher: {first_line(error)}") from error
        tokenizer = Tokenizer.load(checkpoint.directory)
        info = teacher_info(
            checkpoint,
            tokenizer,
            dtype=network.dtype,
            vocab_size=config.vocab_size,
            longest_sequence=longest,
            engine="transformers",
            engine_version=f"{transformers.__version__} (torch {torch.__version__})",
        )
        return cls(info, tokenizer, teacher_pass, max_batch_tokens)

    async def score(
        self,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperatures: Sequence[float],
    ) -> list[Record]:
        """Values of each completion after one prompt, in order; see `Teacher.score`."""
        check(self.info, prompt_token_ids, completions, temperatures)
        if self._closed:
            raise TeacherUnavailable("the teacher is closed; start the server again")
        question = Question(
            list(prompt_token_ids), [list(ids) for ids in completions], tuple({1.0, *map(float, temperatures)})
        )
        call = _Call(question, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await call.answer

    def tokenize(self, item: TextItem, max_tokens: int) -> TokenItem:
        """Token ids by the teacher's own tokenizer and chat template; see `Tokenizer.tokenize`."""
        return self._tokenizer.tokenize(item, self.info.longest_sequence, max_tokens)

    async def died(self) -> None:
        """Never: this engine lives in the server's own process."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        self._closed = True
        if self._worker is not None and not self._worker.done():
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting, []
            for batch in micro_batches([call.question for call in calls], self._max_batch_tokens):
                await self._run([calls[index] for index in batch])

    async def _run(self, calls: list[_Call]) -> None:
        wanted = [call for call in calls if not call.answer.done()]
        if self._closed:
            for call in wanted:
                _fail(call, "the teacher is closing; try again when it is back")
        if self._closed or not wanted:
            return
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._pass.score, [call.question for call in wanted]
            )
        except Exception as error:  # a pass may fail in any way; its callers are told, its neighbours go on
            for call in wanted:
                _fail(call, f"the pass failed: {type(error).__name__}: {first_line(error)}")
            return
        for call, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, TeacherUnavailable):
                _fail(call, answer.message)
            elif not call.answer.done():
                call.answer.set_result(answer)


def _fail(call: _Call, reason: str) -> None:
    if not call.answer.done():
        call.answer.set_exception(TeacherUnavailable(reason))


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except Exception as error:
        raise InvalidRequest(f"device {asked!r} cannot be used: {first_line(error)}; cpu always can") from error
    return device


def _load_network(checkpoint: Checkpoint, dtype: str, device: torch.device, attention: str | None) -> Any:
    local = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(checkpoint.directory, **local)
    if attention is None and getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        attention = "eager"
    checkpoint.weight_files()  # says clearly what is missing, before transformers says it its own way
    quantized = "quantization_config" in checkpoint.config
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint.directory,
        dtype=dtype,
        attn_implementation=attention,
        device_map=device if quantized else None,
        output_loading_info=True,
        **local,
    )
    network, loading = loaded
    if loading["missing_keys"]:
        first, *others = sorted(loading["missing_keys"])
        raise InvalidRequest(
            f"{checkpoint.directory} has no weights for {first}{f' and {len(others)} more' if others else ''}; "
            "save the whole causal LM"
        )
    return (network if quantized else network.to(device)).eval()
