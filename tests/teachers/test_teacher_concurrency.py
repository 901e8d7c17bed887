"""Calls that are made together share passes, and what befalls one leaves its neighbours alone."""

import asyncio

import pytest
import torch

from small_models import ask, assert_agrees, load, tokens
from tvkd_server.teachers.transformers_teacher import TransformersTeacher
from tvkd_shared.errors import TeacherUnavailable, TokenOutOfRange
from tvkd_shared.record import column_names

PROMPT, COMPLETION, COLUMNS = tokens(6, 1), tokens(5, 2), column_names()


@pytest.fixture
def llama(saved) -> TransformersTeacher:
    """A teacher of the test's own, whose first layer may be given hooks."""
    return load(saved("llama"))


def on_each_read(llama, hook) -> None:
    """Run a hook on the shape (rows, tokens) of each forward pass, before it."""
    layer = llama._pass._backbone._forward.layers[0]

    def before(_, args) -> None:
        hook(args[0].shape[:2])

    layer.register_forward_pre_hook(before)


def out_of_memory_beyond(rows: int, tokens_: int = 10**6):
    def hook(shape):
        if shape[0] > rows or shape[1] > tokens_:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    return hook


def test_concurrent_calls_are_read_in_one_pass(llama):
    shapes = []
    on_each_read(llama, lambda shape: shapes.append(tuple(shape)))
    ask(llama, *[(tokens(6, k), [tokens(5, k + 50)], [1.0]) for k in range(4)])
    assert shapes == [(4, 6), (4, 5)]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_out_of_memory_halves_the_micro_batch_until_it_fits(rows, llama, reference):
    on_each_read(llama, out_of_memory_beyond(rows))
    questions = [
        (tokens(6, k), [tokens(4, 10 * k), tokens(3, 10 * k + 1), tokens(2, 10 * k + 2)], [1.0]) for k in range(5)
    ]
    for answer, (prompt, completions, _) in zip(ask(llama, *questions), questions, strict=True):
        for record, completion in zip(answer, completions, strict=True):
            assert_agrees(record, reference("llama")(prompt, completion))


def test_what_does_not_fit_even_alone_is_refused_and_its_neighbours_are_answered(llama):
    on_each_read(llama, out_of_memory_beyond(10, tokens_=20))

    async def both():
        return await asyncio.gather(
            llama.score(tokens(30, 1), [COMPLETION], COLUMNS), llama.score(PROMPT, [COMPLETION], COLUMNS),
            return_exceptions=True,
        )  # fmt: skip

    too_large, fits = asyncio.run(both())
    assert isinstance(too_large, TeacherUnavailable) and "prompt of 30" in str(too_large)
    assert fits[0].length == len(COMPLETION)


def test_a_question_that_fails_its_pass_is_told_in_one_line_and_its_neighbours_are_answered(llama):
    shapes = []

    def fail_on_long(shape):
        shapes.append(tuple(shape))
        if shape[1] == 30:
            raise RuntimeError("device-side assert\nwith a long story")

    on_each_read(llama, fail_on_long)

    async def both():
        return await asyncio.gather(
            llama.score(tokens(30, 1), [COMPLETION], COLUMNS), llama.score(PROMPT, [COMPLETION], COLUMNS),
            return_exceptions=True,
        )  # fmt: skip

    failed, answered = asyncio.run(both())
    assert shapes[0] == (2, 30)
    assert isinstance(failed, TeacherUnavailable)
    assert str(failed) == "the pass failed: RuntimeError: device-side assert"
    assert answered[0].length == len(COMPLETION)
    assert ask(llama, (PROMPT, [COMPLETION], [1.0]))


def test_a_cancelled_call_is_not_read_and_leaves_its_neighbours_alone(llama):
    rows = []
    on_each_read(llama, lambda shape: rows.append(shape[0]))

    async def cancel_one():
        calls = [asyncio.create_task(llama.score(tokens(6, k), [COMPLETION], COLUMNS)) for k in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, cancelled, last = asyncio.run(cancel_one())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert first[0].length == last[0].length == len(COMPLETION)
    assert rows == [2, 2]  # what nobody waits for is not read
    assert ask(llama, (PROMPT, [COMPLETION], [1.0]))


def test_a_call_cancelled_during_its_pass_leaves_its_neighbours_alone(llama):
    async def cancel_one():
        loop, reading = asyncio.get_running_loop(), asyncio.Event()
        on_each_read(llama, lambda _: loop.call_soon_threadsafe(reading.set))
        calls = [asyncio.create_task(llama.score(tokens(6, k), [COMPLETION], COLUMNS)) for k in range(2)]
        await reading.wait()
        calls[0].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    cancelled, answered = asyncio.run(cancel_one())
    assert isinstance(cancelled, asyncio.CancelledError) and answered[0].length == len(COMPLETION)


def test_a_bad_token_is_refused_before_it_joins_a_pass(llama):
    with pytest.raises(TokenOutOfRange):
        ask(llama, ([503], [COMPLETION], [1.0]))


def test_a_closed_teacher_finishes_what_it_reads_and_refuses_the_rest(saved):
    llama = load(saved("llama"), max_batch_tokens=6)

    async def close_meanwhile():
        loop, reading = asyncio.get_running_loop(), asyncio.Event()
        on_each_read(llama, lambda _: loop.call_soon_threadsafe(reading.set))
        calls = [asyncio.create_task(llama.score(tokens(6, k), [COMPLETION], COLUMNS)) for k in range(3)]
        await reading.wait()
        await llama.close()
        with pytest.raises(TeacherUnavailable):
            await llama.score(PROMPT, [COMPLETION], COLUMNS)
        return await asyncio.gather(*calls, return_exceptions=True)

    read, *waiting = asyncio.run(close_meanwhile())
    assert read[0].length == len(COMPLETION)
    assert [type(answer) for answer in waiting] == [TeacherUnavailable] * 2
