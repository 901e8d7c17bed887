"""The check that a teacher under vLLM must pass before it is ready: steady values, and those of transformers.

vLLM has its own code for each model, attention and device, and where that is wrong nothing tells.
"""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.teacher import NotFinite, Question, Teacher
from tvkd_server.teachers.transformers_teacher import TransformersTeacher
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable, TVKDError
from tvkd_shared.record import Record, column_names

logger = logging.getLogger(__name__)

COMPARED_BYTES = 2 << 30
"""Weights of up to this size are loaded under transformers too, in float32 on the CPU, and the values are compared."""

_LONG, _LIMIT_ON_CPU, _LIMIT_ON_GPU = 500, 700, 5000
"""Tokens of the longest probe: `_LONG`, or past the model's window, within the limit. Each takes seconds at most."""

_EXACT, _ROUNDED = 1e-4, 5e-2
"""Differences allowed, as shares of the largest number: for any state in float32, for the mean in 16 bits. A wrong
window, position or scale lies far outside."""

_OTHER_ENGINE = "serve it with --engine transformers"
_RESCORE = "once a store has some of its values, `tvkd store verify --rescore` compares a sample"


def probes(teacher: Teacher, lengths: Sequence[int], *, on_cpu: bool) -> list[Question]:
    """At least ten questions, because some engines fail only then, of short and long sequences and of these lengths.

    The second completion of each may read the prompt from the engine's cache.
    """
    longest = min(teacher.info.longest_sequence, _LIMIT_ON_CPU if on_cpu else _LIMIT_ON_GPU)
    if beyond := [length for length in lengths if longest < length <= teacher.info.longest_sequence]:
        logger.warning(
            "%s is checked with at most %d tokens, and its attention changes further on, before %s; %s",
            teacher.info.name, longest, " and ".join(f"{length:,}" for length in sorted(beyond)), _RESCORE,
        )  # fmt: skip
    distinct = sorted({max(3, min(length, longest)) for length in (5, 17, *lengths, _LONG)})
    random, questions = np.random.default_rng(0), []
    for length in distinct + distinct[:1] * (10 - len(distinct)):
        ids = random.integers(0, teacher.info.vocab_size, length).tolist()
        start = length - length // 4 - 1
        questions.append(Question(ids[:start], [ids[start:], [ids[0], *ids[start + 1 :]]], column_names()))
    return questions


def check_values(
    teacher: Teacher, questions: Sequence[Question], checkpoint: Checkpoint, reference: ServeSettings
) -> None:
    """Ask the questions together, again, and one by one; then the teacher of `reference`, if the weights are small.

    Raises InvalidRequest in one line when the values differ or are not finite, or when the engine dies.
    """
    name = f"{checkpoint.name} under {teacher.engine} {teacher.engine_version}"
    exact = teacher.info.dtype == "float32"
    try:
        together, again = (asyncio.run(_ask(teacher, questions)) for _ in range(2))
        alone = [record for question in questions for record in asyncio.run(_ask(teacher, [question]))]
    except NotFinite as error:
        damaged = "" if teacher.info.dtype == "float16" else "; its weights may be damaged: copy them again"
        raise InvalidRequest(f"{name} fails at its first questions: {error}{damaged}") from error
    except TeacherUnavailable as error:
        raise InvalidRequest(
            f"{name} fails at its first questions: {error}; another --dtype may help, or {_OTHER_ENGINE}"
        ) from error
    if difference := _difference(together, again, exact=exact) or _difference(together, alone, exact=exact):
        raise InvalidRequest(
            f"{name} gives another value each time that it is asked (by {difference:.2g}), so that none can be right; "
            f"{_OTHER_ENGINE}, or name another attention_backend in --engine-args"
        )
    large = sum(path.stat().st_size for path in checkpoint.weight_files()) > COMPARED_BYTES
    if teacher.info.quantization or large:
        reason = f"larger than {COMPARED_BYTES >> 30} GiB" if large else "quantised"
        logger.warning("%s was not compared with transformers, because its weights are %s; %s", name, reason, _RESCORE)
        return
    try:
        expected = _reference_values(reference, questions)
    except TVKDError as error:
        logger.warning("%s was not compared with transformers: %s; %s", name, error, _RESCORE)
        return
    if difference := _difference(together, expected, exact=exact):
        raise InvalidRequest(
            f"{name} gives other values than transformers does in float32 (by {difference:.2g}): its own code for this "
            f"model does not fit the checkpoint or the device; {_OTHER_ENGINE}"
        )
    logger.info("%s gives the values of transformers, at %d sequences", name, len(expected))


def _reference_values(settings: ServeSettings, questions: Sequence[Question]) -> list[Record]:
    async def ask_and_close() -> list[Record]:
        records = await _ask(teacher, questions)
        await teacher.close()
        return records

    teacher = TransformersTeacher.load(settings)
    return asyncio.run(ask_and_close())


async def _ask(teacher: Teacher, questions: Sequence[Question]) -> list[Record]:
    """The records of all completions. The questions are asked at the same time."""
    calls = [teacher.score(question.prompt, question.completions, question.columns) for question in questions]
    return [record for records in await asyncio.gather(*calls) for record in records]


def _difference(records: Sequence[Record], others: Sequence[Record], *, exact: bool) -> float:
    """How far two answers to the same questions are apart, or 0 if that is within the rounding of the dtype."""
    numbers, other_numbers = (np.concatenate([record.numbers.ravel() for record in some]) for some in (records, others))
    errors = np.abs(numbers - other_numbers)
    scale = max(1.0, float(np.nanmax(np.abs(other_numbers))))
    error, share = (np.nanmax(errors), _EXACT) if exact else (np.nanmean(errors), _ROUNDED)
    return float(error) if error > share * scale else 0.0
