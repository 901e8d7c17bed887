"""Who is served next: clients in turn by tokens, bulk after the others, and nothing for those who left."""

import asyncio
import json
import time

import httpx
import pytest

from raw_http import HEAD, connect
from tvkd_server.admission import Admission
from tvkd_server.turns import Asker, Turns
from tvkd_shared.errors import Overloaded

A, B, BULK = Asker("a"), Asker("b"), Asker("c", bulk=True)


def order_of(prompts, window=1, cancelled=()):
    """The numbers of (asker, tokens) in the order in which they come to the teacher; the first comes at once."""

    async def run():
        turns, order, tasks = Turns(window), [], []

        async def ask(number, asker, tokens):
            async with turns.turn(asker, tokens):
                order.append(number)
                await asyncio.sleep(0)

        for number, (asker, tokens) in enumerate(prompts):
            tasks.append(asyncio.create_task(ask(number, asker, tokens)))
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        return order

    return asyncio.run(run())


def test_a_small_request_does_not_wait_for_all_of_a_large_one():
    assert order_of([(A, 10)] * 4 + [(B, 10)]) == [0, 4, 1, 2, 3]


def test_clients_are_served_by_tokens_and_not_by_prompts():
    assert order_of([(A, 30)] * 3 + [(B, 10)] * 5) == [0, 3, 4, 5, 1, 6, 7, 2]


def test_bulk_comes_after_the_others():
    assert order_of([(BULK, 10)] * 3 + [(A, 10)] * 2) == [0, 3, 4, 1, 2]


@pytest.mark.parametrize(("askers", "fit"), [([A] * 4, 2), ([BULK] * 4, 2), ([A, BULK, BULK], 1)])
def test_as_many_prompts_as_fit_the_window_are_with_the_teacher_and_bulk_beside_others_fills_half(askers, fit):
    async def run():
        turns, inside = Turns(25), 0

        async def ask(asker, tokens):
            nonlocal inside
            async with turns.turn(asker, tokens):
                inside += 1
                await asyncio.sleep(60)

        tasks = [asyncio.create_task(ask(asker, 10)) for asker in askers]
        for _ in range(5):
            await asyncio.sleep(0)
        seen = inside
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seen, turns._with_teacher

    assert asyncio.run(run()) == (fit, 0)


def test_who_left_while_it_waited_is_passed_over():
    assert order_of([(A, 10)] * 4, cancelled=[1, 2]) == [0, 3]


def test_bulk_fills_half_of_the_queue_and_leaves_the_rest_to_others():
    admission = Admission(100)
    with admission.hold(40, BULK):
        with pytest.raises(Overloaded), admission.hold(20, BULK):
            pass
        with admission.hold(60, A):
            pass


def computed(server):
    return server.metric("tvkd_computed_completions_total")


def send_and_leave(server, first, options):
    """Ask for 900 sequences, and leave when they are queued. Returns how many were computed since."""
    before = computed(server)
    items = [{"prompt_token_ids": [first, 9 + n % 100] * 60, "completions": [[9 + n % 99] * 120]} for n in range(900)]
    body = json.dumps({"items": items} | options, separators=(",", ":")).encode()
    with connect(server, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body):
        while not server.metric("tvkd_queued_tokens"):
            time.sleep(0.01)
    while server.metric("tvkd_queued_tokens"):
        time.sleep(0.01)
    return computed(server) - before


def test_nothing_more_is_computed_for_a_client_that_left(server):
    assert send_and_leave(server, 10, {}) < 900
    assert server.metric('tvkd_requests_total{outcome="disconnected"}') >= 1


def test_what_a_client_asked_for_in_bulk_is_computed_when_it_has_left(server):
    assert send_and_leave(server, 11, {"return": "digests"}) == 900
    assert httpx.get(f"{server.url}/readyz").status_code == 200
