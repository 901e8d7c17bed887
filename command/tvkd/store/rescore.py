"""A random sample of a store's values, computed again by transformers in float32 on the same weights."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable

import datasets
import numpy as np

from tvkd_client.preference_tokens import load_tokenizer, tokenize_preferences
from tvkd_server.settings import reference_settings
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.teacher import Teacher
from tvkd_server.teachers.transformers_teacher import TransformersTeacher
from tvkd_shared.errors import InvalidRequest, NotCached, TeacherMismatch
from tvkd_shared.key import completion_keys, teacher_id
from tvkd_shared.record import Record, column_names
from tvkd_shared.store import StoreReader
from tvkd_shared.store.certificate import Certificate, write_certificate

QUANTILES = (0.5, 0.99, 1.0)
_AT_ONCE = 256
"""Questions of the data set that are looked up at once, whose values are in memory then."""

Question = tuple[list[int], list[int], bytes]
"""Prompt, completion, and the key of its values."""


def rescore(
    store: StoreReader,
    sequences: int,
    *,
    model: str,
    pairs: Callable[[], datasets.Dataset],
    tokenizer: str,
    seed: int,
    progress: Callable[[list[Question]], Iterable[Question]],
) -> Certificate:
    """Compute a sample again, and keep in the store how far it was off.

    The store holds digests of tokens, so the tokens come from the data set that was fetched. Raises TeacherMismatch
    when the model's weights are not those of a teacher of the store, NotCached when fewer than `sequences` of the data
    set's completions are in the store.
    """
    teacher = _teacher(store, model)
    sample = _sample(store, _questions(pairs, tokenizer, teacher), sequences, seed)
    again = TransformersTeacher.load(reference_settings(model))
    errors = asyncio.run(_errors(again, store, progress(sample)))
    certificate = Certificate(
        teacher=teacher,
        made=time.time(),
        commit=store.catalog.number,
        sequences=len(sample),
        numbers=len(errors),
        reference=f"transformers {again.info.engine_version}, float32",
        errors={str(quantile): float(np.quantile(errors, quantile)) for quantile in QUANTILES},
    )
    write_certificate(store.files, certificate)
    return certificate


def _teacher(store: StoreReader, model: str) -> str:
    """The teacher of the store that has the model's weights, in whatever dtype it computed."""
    checkpoint = Checkpoint.find(model)
    digest = checkpoint.weights_digest()
    for teacher, known in store.teachers().items():
        for quantization in (checkpoint.config.get("quantization_config"), known["quantization"]):
            if teacher_id(digest, checkpoint.config, known["dtype"], quantization) == teacher:
                return teacher
    raise TeacherMismatch(f"store {store.place} has no teacher with the weights and config of {model}")


def _questions(pairs: Callable[[], datasets.Dataset], tokenizer: str, teacher: str) -> list[Question]:
    """Every completion of the data set, each once."""
    datasets.disable_progress_bars()
    questions: dict[bytes, Question] = {}
    for row in tokenize_preferences(pairs(), load_tokenizer(tokenizer)):
        prompt, completions = list(row["prompt_ids"]), [list(row["chosen_ids"]), list(row["rejected_ids"])]
        for key, completion in zip(completion_keys(teacher, prompt, completions), completions, strict=True):
            questions[key] = (prompt, completion, key)
    return list(questions.values())


def _sample(store: StoreReader, questions: list[Question], sequences: int, seed: int) -> list[Question]:
    """Questions in random order whose values are in the store, as many as were asked for."""
    random.Random(seed).shuffle(questions)  # noqa: S311 - a sample, no secret
    stored: list[Question] = []
    for start in range(0, len(questions), _AT_ONCE):
        batch = questions[start : start + _AT_ONCE]
        stored += [
            question for question, record in zip(batch, store.get([key for *_, key in batch]), strict=True) if record
        ]
        if len(stored) >= sequences:
            return stored[:sequences]
    raise NotCached(
        f"{len(stored)} of the data set's {len(questions)} completions are in store {store.place}, fewer than "
        f"--rescore {sequences}; was it filled with this data set and tokenizer?"
    )


async def _errors(teacher: Teacher, store: StoreReader, sample: Iterable[Question]) -> np.ndarray:
    """|stored − computed again| of every number of the sample, float64."""
    errors = []
    for prompt, completion, key in sample:
        (record,) = store.get([key])
        if record is None:
            raise InvalidRequest("a value went missing while it was computed again; run `tvkd store verify`")
        (scored,) = await teacher.score(prompt, [completion], column_names())
        before, after = _numbers(record), _numbers(scored)
        errors.append(np.abs(before - after))
    await teacher.close()
    return np.concatenate(errors)


def _numbers(record: Record) -> np.ndarray:
    return np.concatenate([record.column(name) for name in record.columns], dtype=np.float64)
