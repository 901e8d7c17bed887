"""A teacher takes one prompt and its completions, and returns a record of numbers for each completion.

What every engine shares is here: how a checkpoint becomes a teacher with an id, and the check that no question passes
without. An engine adds how it loads the model and how it computes the numbers.
"""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.checkpoint import Checkpoint, first_line
from tvkd_server.teachers.tokenizer import Tokenizer
from tvkd_shared.errors import (
    InvalidRequest,
    SequenceTooLong,
    TeacherUnavailable,
    TemperatureNotServed,
    TokenOutOfRange,
    TVKDError,
)
from tvkd_shared.key import Tokens, teacher_id
from tvkd_shared.record import Float32, Record, has_last_state
from tvkd_shared.text import TokenizedItem
from tvkd_shared.wire import TeacherInfo, TextItem

TEMPERATURES = (0.1, 10.0)
"""The lowest and the highest temperature served: between them float32 holds V_τ to 1e-4."""


class NotFinite(TeacherUnavailable):
    """A completion's numbers are not finite, which says nothing of other completions."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt and its completions as token ids, and the names of the columns wanted of each state."""

    prompt: list[int]
    completions: list[list[int]]
    columns: tuple[str, ...]


class Teacher(ABC):
    """A loaded model. `load` makes one; an engine implements `_load`, `_numbers` and `_stop`."""

    engine: ClassVar[str]
    engine_version: ClassVar[str]
    info: TeacherInfo
    window: int
    """Tokens of all questions that keep the engine busy: with more at once it is no faster."""
    tokenizer: Tokenizer
    _closed = False

    @classmethod
    def load(cls, settings: ServeSettings) -> Self:
        """Load the checkpoint directory or hub id of the settings. This blocks: call it in a thread.

        A directory is read without any use of the network, and a checkpoint's own code is never run. The dtype is part
        of the teacher's id: a checkpoint served in bfloat16 and in float32 is two teachers, each with its own values.
        Raises InvalidRequest, in one line, when the checkpoint is missing or a setting or the model cannot be served.
        """
        checkpoint = Checkpoint.find(settings.model, settings.name)
        checkpoint.weight_files()  # names what is missing more clearly than the engines do
        teacher = cls()
        try:
            torch_dtype, vocab_size, longest_sequence = teacher._load(checkpoint, settings)
        except TVKDError:
            raise
        except Exception as error:
            raise checkpoint.refusal(f"{settings.model} does not load as a teacher", first_line(error)) from error
        teacher.tokenizer = Tokenizer(checkpoint.directory)
        config, dtype = checkpoint.config, str(torch_dtype).removeprefix("torch.")
        teacher.info = TeacherInfo(
            id=teacher_id(checkpoint.weights_digest(), config, dtype, checkpoint.quantization or settings.quantization),
            name=checkpoint.name,
            dtype=dtype,
            quantization=checkpoint.quantization_method or settings.quantization,
            tokenizer_digest=teacher.tokenizer.digest,
            chat_template_digest=teacher.tokenizer.chat_template_digest,
            vocab_size=vocab_size,
            longest_sequence=longest_sequence,
            engine=cls.engine,
            engine_version=cls.engine_version,
            temperatures=list(TEMPERATURES),
        )
        teacher._check(checkpoint, settings)
        return teacher

    @abstractmethod
    def _load(self, checkpoint: Checkpoint, settings: ServeSettings) -> tuple[Any, int, int]:
        """Start the engine, and set `window`. Returns torch's dtype as it runs, the vocabulary's size and the longest
        sequence.

        An error that is not a TVKDError is reported as a checkpoint that does not load.
        """

    def _check(self, checkpoint: Checkpoint, settings: ServeSettings) -> None:  # noqa: B027 - an engine may need none
        """Raises InvalidRequest, with the engine stopped, when the loaded teacher's values cannot be right."""

    @abstractmethod
    async def _numbers(self, question: Question) -> list[Float32]:
        """For each completion a new float32 array [T + 1, K] of the question's K columns.

        The last state has no action, so an action's column may hold any number there. Calls made at the same time
        share passes; one that is cancelled or fails does not harm the others. Raises TeacherUnavailable.
        """

    @abstractmethod
    async def _stop(self) -> None:
        """Finish what the engine is computing, refuse what waits, and free the device. Called once."""

    async def died(self) -> None:
        """Return once the engine is dead for good. One that lives in the server's own process never dies alone."""
        await asyncio.Event().wait()

    async def score(
        self, prompt_token_ids: Sequence[int], completions: Sequence[Sequence[int]], columns: Sequence[str]
    ) -> list[Record]:
        """A record of these columns for each completion after one prompt, in order.

        Raises InvalidRequest (see `check`), ValueError for a name that no column has, and TeacherUnavailable
        when the engine is closed, dead or out of memory; NotFinite when the numbers of a completion are not finite.
        """
        # No token reaches an engine but through here: one outside the vocabulary would kill it.
        self.check(prompt_token_ids, completions)
        for name in columns:
            has_last_state(name)  # it raises for a name that no column has
        if self._closed:
            raise TeacherUnavailable("the teacher is closed; start the server again")
        question = Question(list(prompt_token_ids), [list(ids) for ids in completions], tuple(columns))
        numbers = await self._numbers(question)
        return [_record(question.columns, numbers_SK, self.info.dtype) for numbers_SK in numbers]

    def check(self, prompt_token_ids: Tokens, completions: Sequence[Tokens], where: str = "") -> None:
        """Refuse what the teacher cannot answer. `where` names the item in the message, such as "items[3]".

        Raises TokenOutOfRange or SequenceTooLong with the index and the value, and InvalidRequest for an empty prompt,
        an empty completion, or no completion at all.
        """
        at = f"{where}: " if where else ""
        if len(completions) == 0:
            raise InvalidRequest(f"{at}the prompt has no completion; it needs at least one")
        last, longest, prompt = self.info.vocab_size - 1, self.info.longest_sequence, len(prompt_token_ids)
        for number, token_ids in enumerate([prompt_token_ids, *completions]):
            name = f"completions[{number - 1}]" if number else "prompt_token_ids"
            if len(token_ids) == 0:
                raise InvalidRequest(f"{at}{name} is empty; it needs at least one token")
            ids = np.asarray(token_ids)
            # `reduce` is twice as fast as `max` for the few hundred ids of a completion.
            if np.maximum.reduce(ids) > last or (ids.dtype.kind != "u" and np.minimum.reduce(ids) < 0):
                index = int(((ids < 0) | (ids > last)).argmax())
                raise TokenOutOfRange(f"{at}{name}[{index}] is {token_ids[index]}; the teacher's tokens are 0 … {last}")
            if number and prompt + len(token_ids) > longest:
                length = f"{prompt} + {len(token_ids)} = {prompt + len(token_ids)} tokens"
                raise SequenceTooLong(
                    f"{at}the prompt and {name} are {length}; the teacher's longest sequence is {longest}: shorten it"
                )

    def tokenize(self, item: TextItem, max_tokens: int) -> TokenizedItem:
        """Token ids by the teacher's own tokenizer and chat template; see `tvkd_shared.text.tokenize`."""
        return self.tokenizer.tokenize(item, self.info.longest_sequence, max_tokens)

    async def close(self) -> None:
        """Finish what the engine is computing and refuse what waits. `score` raises TeacherUnavailable from now on."""
        if not self._closed:
            self._closed = True
            await self._stop()


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raises TemperatureNotServed, with the index and the value, for a temperature outside the range served."""
    lowest, highest = TEMPERATURES
    for index, temperature in enumerate(temperatures):
        if not lowest <= temperature <= highest:
            raise TemperatureNotServed(f"temperatures[{index}] is {temperature}; served are {lowest} … {highest}")


def _record(columns: tuple[str, ...], numbers_SK: Float32, dtype: str) -> Record:
    numbers_SK[-1, [not has_last_state(name) for name in columns]] = math.nan
    try:
        return Record(columns, numbers_SK)
    except ValueError as error:
        overflow = "; serve it in bfloat16 or float32" if dtype == "float16" else ""  # which overflows in many models
        raise NotFinite(f"the teacher's {error}{overflow}") from error
