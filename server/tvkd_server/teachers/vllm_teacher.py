"""The production engine: vLLM, with the prompt of several completions read once through its prefix cache."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tvkd_server.teachers.checkpoint import Checkpoint, first_line
from tvkd_server.teachers.dtype import served_dtype
from tvkd_server.teachers.info import teacher_info
from tvkd_server.teachers.limits import check
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_server.teachers.vllm_engine import plugin, private
from tvkd_server.teachers.vllm_engine.arguments import refuse_what_changes_values
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import Record
from tvkd_shared.wire import TeacherInfo, TextItem, TokenItem

_CPU_CACHE_GIB = "4"
"""Key-value cache on a CPU when the user names none: vLLM would take nearly all of the machine's memory."""


class VLLMTeacher:
    """vLLM's engine batches; this class asks it for one sequence a completion and checks that every row came back."""

    def __init__(self, info: TeacherInfo, tokenizer: Tokenizer, engine: Any, block: int) -> None:
        """`block` is the number of tokens that the prefix cache keeps together, 0 without a prefix cache."""
        self.info = info
        self._tokenizer = tokenizer
        self._engine = engine
        self._block = block

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        name: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        head_chunk: int = 256,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        engine_arguments: dict[str, Any] | None = None,
    ) -> "VLLMTeacher":
        """Start the engine on a checkpoint directory, or a hub id. Blocking: call it in a thread.

        dtype            see `served_dtype`; part of the teacher's id, as is quantization
        head_chunk       states whose logits exist at once on each device
        engine_arguments further arguments of `AsyncEngineArgs`; see `arguments.ALLOWED`
        Arguments that are None are left to vLLM. Raises InvalidRequest in one line when the checkpoint or an argument
        cannot serve.
        """
        checkpoint = Checkpoint.find(model, name)
        dtype = served_dtype(dtype, checkpoint.config, on_cpu=private.on_cpu())
        more = engine_arguments or {}
        refuse_what_changes_values(more)
        architecture = _architecture(checkpoint)
        checkpoint.weight_files()  # says clearly what is missing, before vLLM says it its own way
        sizes = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_num_batched_tokens,
        }
        if private.on_cpu() and gpu_memory_utilization is None and "kv_cache_memory_bytes" not in more:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        if not {"nnodes", "distributed_executor_backend"} & more.keys():
            # vLLM would find the address under which other machines see this one, by way of 8.8.8.8.
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        os.environ[plugin.SERVER] = str(os.getpid())
        try:
            arguments = private.AsyncEngineArgs(
                model=str(checkpoint.directory),
                runner="pooling",
                # The head in the body's dtype, as transformers runs it: also the only way for a quantised head.
                hf_overrides={"architectures": [plugin.PREFIX + architecture], "head_dtype": "model"},
                skip_tokenizer_init=True,
                additional_config={"head_chunk": head_chunk},
                dtype=dtype,
                quantization=quantization,
                tensor_parallel_size=tensor_parallel_size,
                **{name: size for name, size in sizes.items() if size is not None},
                **more,
            )
            engine = private.AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise InvalidRequest(f"{model} does not start under vLLM: {first_line(error)}") from error
        config = engine.vllm_config
        tokenizer = Tokenizer.load(checkpoint.directory)
        info = teacher_info(
            checkpoint,
            tokenizer,
            dtype=config.model_config.dtype,
            quantization=quantization,
            vocab_size=config.model_config.hf_text_config.vocab_size,
            longest_sequence=config.model_config.max_model_len,
            engine="vllm",
            engine_version=private.VERSION,
        )
        cache = config.cache_config
        return cls(info, tokenizer, engine, cache.block_size if cache.enable_prefix_caching else 0)

    async def score(
        self,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperatures: Sequence[float],
    ) -> list[Record]:
        """Values of each completion after one prompt, in order; see `Teacher.score`.

        The first completion goes ahead, and those that can read the prompt from the prefix cache follow.
        """
        check(self.info, prompt_token_ids, completions, temperatures)
        if self._engine is None:
            raise TeacherUnavailable("the teacher is closed; start the server again")
        asked = sorted({1.0, *map(float, temperatures)})
        prompt = list(prompt_token_ids)
        first, *others = [list(ids) for ids in completions]
        shares = [self._cache_serves(prompt, first, other) for other in others]
        alone = asyncio.create_task(self._sequence(prompt, first, asked, read_prefix_cache=False))
        tasks = [alone]
        try:
            if any(shares):
                await alone
            tasks += [
                asyncio.create_task(self._sequence(prompt, ids, asked, read_prefix_cache=share))
                for ids, share in zip(others, shares, strict=True)
            ]
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _cache_serves(self, prompt: list[int], first: list[int], other: list[int]) -> bool:
        """Whether blocks of `first` hold some of the prompt for `other`, and none of the states to be scored.

        A state that is read from the cache has no logits. The last token of the prompt is the first state.
        """
        if not self._block:
            return False
        alike = next(
            (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other))
        )
        cached = (len(prompt) + alike) // self._block * self._block
        return 0 < cached < len(prompt)

    async def _sequence(
        self, prompt: list[int], completion: list[int], temperatures: list[float], *, read_prefix_cache: bool
    ) -> Record:
        """One completion's record, from rows that were seen to be complete and in order.

        What others left in the cache may reach into the completion; it is then read again, past the cache.
        """
        first_state = len(prompt) - 1
        parameters = private.parameters(first_state, temperatures, read_prefix_cache=read_prefix_cache)
        table_SK = await self._encode(prompt + completion, parameters)
        expected_S = np.arange(first_state, first_state + len(completion) + 1)
        if not np.array_equal(table_SK[:, 0], expected_S):
            if read_prefix_cache:
                return await self._sequence(prompt, completion, temperatures, read_prefix_cache=False)
            raise TeacherUnavailable(
                f"the engine returned {len(table_SK)} states of {len(expected_S)}, or in another order; ask again"
            )
        try:
            return Record.of(
                values={tau: table_SK[:, 1 + index].copy() for index, tau in enumerate(temperatures)},
                action_logits=table_SK[:-1, -1].copy(),
                entropies=table_SK[:, -2].copy(),
            )
        except ValueError as error:
            raise TeacherUnavailable(f"the teacher's {error}; serve it in bfloat16 or float32") from error

    async def _encode(self, token_ids: list[int], parameters: Any) -> np.ndarray:
        try:
            answer = None
            async for output in self._engine.encode({"prompt_token_ids": token_ids}, parameters, uuid.uuid4().hex):
                answer = output
        except private.VLLMServerError as error:
            raise TeacherUnavailable(f"the engine failed: {first_line(error)}", retry_after=30) from error
        if answer is None or answer.outputs is None:
            raise TeacherUnavailable("the engine ended a sequence without an answer; ask again")
        table: np.ndarray = answer.outputs.data.float().numpy()
        return table

    def tokenize(self, item: TextItem, max_tokens: int) -> TokenItem:
        return self._tokenizer.tokenize(item, self.info.longest_sequence, max_tokens)

    async def died(self) -> None:
        """Return once the engine's process, or one of its workers, is dead."""
        engine = self._engine
        while not engine.errored:  # noqa: ASYNC110 - vLLM offers a flag and no event
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with contextlib.suppress(Exception):  # a dead engine may fail to shut down; it is gone either way
                # On the event loop: its own task would see the engine go meanwhile, and log that as a death.
                engine.shutdown()


def _architecture(checkpoint: Checkpoint) -> str:
    """The checkpoint's architecture by name. Raises InvalidRequest when vLLM has no causal LM of that name."""
    saved = checkpoint.config.get("architectures") or [
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[checkpoint.config["model_type"]]
    ]
    plugin.register()
    if plugin.PREFIX + saved[0] not in private.ModelRegistry.get_supported_archs():
        raise InvalidRequest(f"vLLM {private.VERSION} has no {saved[0]}; serve it with --engine transformers")
    return str(saved[0])
