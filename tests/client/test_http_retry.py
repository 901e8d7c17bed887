"""When the client asks again, when it gives up, and that it leaves no thread behind. Answers come through
httpx.MockTransport, a documented way to put a function in place of the network."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from arrow_answers import ITEM, answer, client_of, read
from tvkd_client.http import TeacherClient
from tvkd_shared.errors import (
    InvalidRequest,
    Overloaded,
    StoreUnavailable,
    TeacherUnavailable,
)
from tvkd_shared.wire import TokenItem


def test_overload_is_retried_after_the_time_the_server_names():
    waits = []

    def handler(request):
        waits.append(time.monotonic())
        if len(waits) == 1:
            problem = {"title": "", "status": 429, "detail": "the queue is full", "code": "overloaded"}
            return httpx.Response(429, json=problem, headers={"Retry-After": "1"})
        return answer(request)

    client_of(handler).potentials([ITEM])
    assert len(waits) == 2 and waits[1] - waits[0] >= 1


def unavailable(code: str, **headers: str) -> httpx.Response:
    problem = {"title": "", "status": 503, "detail": "said by the server", "code": code}
    return httpx.Response(503, json=problem, headers=headers)


@pytest.mark.parametrize(
    "outage",
    [
        *(httpx.Response(status, text="<html>") for status in (502, 503, 504)),
        unavailable("teacher-unavailable", **{"Retry-After": "0"}),
        unavailable("store-unavailable", **{"Retry-After": "0"}),
        httpx.ConnectError("refused"),
    ],
    ids=["502", "503", "504", "loading", "store", "no answer"],
)
def test_a_passing_outage_is_retried(outage):
    seen = []

    def handler(request):
        seen.append(request)
        if len(seen) > 1:
            return answer(request)
        if isinstance(outage, Exception):
            raise outage
        return outage

    client_of(handler).potentials([ITEM])
    assert len(seen) == 2


@pytest.mark.parametrize("error", [TeacherUnavailable, StoreUnavailable])
def test_an_outage_without_a_time_to_retry_is_raised_at_once(error):
    seen = []
    with pytest.raises(error, match="said by the server"):
        client_of(lambda request: seen.append(request) or unavailable(error.code)).potentials([ITEM])
    assert len(seen) == 1


ITEMS = [TokenItem([i], [[i]]) for i in range(8)]


def failing_beside_waiting(request: httpx.Request, waiting: threading.Event) -> httpx.Response:
    """The first item is refused once another is told to come back in a minute."""
    if read(request).items[0].prompt_token_ids.tolist() == [0]:
        assert waiting.wait(10)
        return httpx.Response(422, json={"title": "", "status": 422, "detail": "no", "code": "invalid-request"})
    waiting.set()
    return unavailable("teacher-unavailable", **{"Retry-After": "60"})


def threads_end(name: str) -> bool:
    """Whether every thread of a pool has ended: Python waits for them before a process does."""
    of_pool = [thread for thread in threading.enumerate() if thread.name.startswith(name)]
    for thread in of_pool:
        thread.join(5)
    return not any(thread.is_alive() for thread in of_pool)


@pytest.mark.parametrize("call", ["fill", "potentials"])
def test_a_call_left_by_an_error_leaves_no_thread_that_waits(call):
    waiting = threading.Event()
    client = client_of(lambda request: failing_beside_waiting(request, waiting), request_tokens=2, patience=120)
    with pytest.raises(InvalidRequest):
        getattr(client, call)(ITEMS)
    assert threads_end("tvkd_")


def test_an_interrupt_leaves_no_thread_that_waits():
    def handler(request):
        if read(request).items[0].prompt_token_ids.tolist() == [0]:
            return answer(request)
        return unavailable("teacher-unavailable", **{"Retry-After": "60"})

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client_of(handler, request_tokens=2, patience=120).fill(ITEMS, progress=interrupted)
    assert threads_end("tvkd_")


def test_a_stopped_client_gives_up_waiting_and_then_asks_again():
    waiting, ready = threading.Event(), []

    def handler(request):
        waiting.set()
        return answer(request) if ready else failing_beside_waiting(request, waiting)

    client = client_of(handler, patience=120)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.potentials, [ITEM])
        assert waiting.wait(10)
        client.stop()
        with pytest.raises(TeacherUnavailable, match="given up"):
            asked.result(10)
    ready.append(True)
    assert client.potentials([ITEM])


def test_fill_tells_of_each_answered_request():
    told = []
    client = client_of(answer, request_tokens=4)
    client.fill(iter(ITEMS), progress=told.append)
    assert [(one.sequences, one.tokens, one.hits) for one in told] == [(2, 4, 2)] * 4


def test_giving_up_says_what_was_tried_last():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TeacherUnavailable) as caught:
            TeacherClient(url, patience=0.1).teacher()
    assert str(caught.value) == f"cannot reach {url}: Connection refused; is `tvkd serve` running there?"


def test_overload_that_lasts_raises_overload():
    problem = {"title": "", "status": 429, "detail": "the queue is full", "code": "overloaded"}
    client = client_of(lambda _: httpx.Response(429, json=problem, headers={"Retry-After": "60"}))
    with pytest.raises(Overloaded, match="the queue is full") as caught:
        client.potentials([ITEM])
    assert caught.value.retry_after == 60
