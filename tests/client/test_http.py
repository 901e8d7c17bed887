"""The client trusts no answer. A doctored answer has to come from somewhere: httpx.MockTransport, a documented way to
put a function in place of the network, is it. Everything else asks the real server."""

import json
import multiprocessing
import pickle
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvkd_client.batches import in_order, split
from tvkd_client.http import TeacherClient
from tvkd_shared.errors import (
    InvalidRequest,
    NotCached,
    Overloaded,
    PayloadTooLarge,
    StoreUnavailable,
    TeacherMismatch,
    TeacherUnavailable,
    TokenOutOfRange,
    TVKDError,
    Unauthorized,
    WrongAnswer,
)
from tvkd_shared.key import completion_keys
from tvkd_shared.wire import TokenItem

URL = "http://teacher.test"
ITEM = TokenItem(prompt_token_ids=[5, 6], completions=[[7, 8, 9], [10]])


def answer(request: httpx.Request, teacher: str = "a" * 32) -> dict:
    """What a right server answers, with made-up numbers."""
    asked = json.loads(request.content)
    items = []
    for item in asked["items"]:
        keys = completion_keys(teacher, item["prompt_token_ids"], item["completions"])
        items.append({"completions": []})
        for key, completion in zip(keys, item["completions"], strict=True):
            states = len(completion) + 1
            one = {"key": key.hex(), "cached": True, "length": len(completion)}
            if asked["return"] == "values":
                one["values"] = [[0.5 * tau] * states for tau in asked["temperatures"]]
                one |= {"action_logits": [1.5] * len(completion), "entropies": [0.25] * states}
            items[-1]["completions"].append(one)
    return {"teacher_id": teacher, "temperatures": asked["temperatures"], "items": items}


def client_of(handler, **settings) -> TeacherClient:
    return TeacherClient(URL, transport=httpx.MockTransport(handler), **{"patience": 30} | settings)


def doctored(change) -> TeacherClient:
    def handler(request):
        right = answer(request)
        change(right, right["items"][0]["completions"])
        return httpx.Response(200, content=json.dumps(right))

    return client_of(handler)


WRONGS = {
    "another key": lambda _, rows: rows[1].update(key="0" * 32),
    "the neighbour's key": lambda _, rows: rows.reverse(),
    "another length": lambda _, rows: rows[1].update(length=2),
    "a value too few": lambda _, rows: rows[1]["values"][0].pop(),
    "an action logit too many": lambda _, rows: rows[1]["action_logits"].append(0.0),
    "an entropy too few": lambda _, rows: rows[1]["entropies"].pop(),
    "no entropies": lambda _, rows: rows[1].pop("entropies"),
    "a temperature too few": lambda _, rows: rows[1]["values"].pop(),
    "NaN": lambda _, rows: rows[1]["values"][0].__setitem__(0, float("nan")),
    "infinity": lambda _, rows: rows[1]["action_logits"].__setitem__(0, float("inf")),
    "beyond float32": lambda _, rows: rows[1]["entropies"].__setitem__(0, 1e300),
    "null": lambda _, rows: rows[1]["values"][0].__setitem__(0, None),
    "a completion too few": lambda _, rows: rows.pop(),
    "an item too few": lambda right, _: right["items"].pop(),
    "temperatures in another order": lambda right, _: right["temperatures"].reverse(),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("wrong", WRONGS)
def test_an_answer_that_does_not_fit_its_question_raises(wrong):
    with pytest.raises(WrongAnswer):
        doctored(WRONGS[wrong]).potentials([ITEM], temperatures=[1.0, 2.0])


def test_a_wrong_answer_names_item_and_completion():
    with pytest.raises(WrongAnswer, match=r"items\[0\]\.completions\[1\]: length 2 came; it has 1 tokens"):
        doctored(WRONGS["another length"]).potentials([ITEM])


def test_a_right_answer_is_returned_with_1_0_among_its_temperatures():
    first, second = doctored(lambda *_: None).potentials([ITEM], temperatures=[2.0])[0]
    assert first.values.keys() == {1.0, 2.0} and first.length == 3 and second.length == 1
    assert first.values[2.0].tolist() == [1.0] * 4


def test_fill_checks_keys_and_counts_what_was_not_stored():
    assert doctored(lambda _, rows: rows[0].update(cached=False)).fill([ITEM]) == 1
    with pytest.raises(WrongAnswer, match="key"):
        doctored(WRONGS["another key"]).fill([ITEM])


def test_the_teacher_must_not_change_between_two_answers():
    teachers = iter(["a" * 32, "b" * 32])
    client = client_of(lambda request: httpx.Response(200, json=answer(request, next(teachers))))
    client.potentials([ITEM])
    with pytest.raises(TeacherMismatch, match=r"b{32}"):
        client.potentials([ITEM])


def test_the_first_teacher_guards_the_next_request():
    asked = []

    def handler(request):
        asked.append(json.loads(request.content).get("teacher_id"))
        return httpx.Response(200, json=answer(request))

    client = client_of(handler)
    client.potentials([ITEM])
    client.potentials([ITEM])
    assert asked == [None, "a" * 32]


@given(sizes=st.lists(st.integers(1, 30)), budget=st.integers(1, 40))
def test_split_keeps_order_and_budget(sizes, budget):
    items = [TokenItem(prompt_token_ids=[index], completions=[[1] * size]) for index, size in enumerate(sizes)]
    batches = list(split(items, budget))
    assert [item for _, batch in batches for item in batch] == items
    for first, batch in batches:
        assert batch[0].prompt_token_ids == [first]
        assert len(batch) == 1 or sum(1 + len(item.completions[0]) for item in batch) <= budget


def test_many_requests_come_back_in_order():
    def handler(request):
        time.sleep(0.02 if json.loads(request.content)["items"][0]["prompt_token_ids"] == [0] else 0)
        return httpx.Response(200, json=answer(request))

    items = [TokenItem(prompt_token_ids=[i], completions=[[i] * (i + 1)]) for i in range(12)]
    rows = client_of(handler, request_tokens=3).potentials(items)
    assert [row[0].length for row in rows] == list(range(1, 13))


def test_batches_are_drawn_only_as_they_are_needed():
    drawn = []
    results = in_order(lambda x: x, (drawn.append(i) or i for i in range(1000)), 2)
    assert next(results) == 0
    assert len(drawn) <= 5
    results.close()


def test_overload_is_retried_after_the_time_the_server_names():
    waits = []

    def handler(request):
        waits.append(time.monotonic())
        if len(waits) == 1:
            problem = {"title": "", "status": 429, "detail": "the queue is full", "code": "overloaded"}
            return httpx.Response(429, json=problem, headers={"Retry-After": "1"})
        return httpx.Response(200, json=answer(request))

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
            return httpx.Response(200, json=answer(request))
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


ITEMS = [TokenItem(prompt_token_ids=[i], completions=[[i]]) for i in range(8)]


def failing_beside_waiting(request: httpx.Request, waiting: threading.Event) -> httpx.Response:
    """The first item is refused once another is told to come back in a minute."""
    if json.loads(request.content)["items"][0]["prompt_token_ids"] == [0]:
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
    assert threads_end("tvkd")


def test_an_interrupt_leaves_no_thread_that_waits():
    def handler(request):
        if json.loads(request.content)["items"][0]["prompt_token_ids"] == [0]:
            return httpx.Response(200, json=answer(request))
        return unavailable("teacher-unavailable", **{"Retry-After": "60"})

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client_of(handler, request_tokens=2, patience=120).fill(ITEMS, progress=interrupted)
    assert threads_end("tvkd")


def test_a_stopped_client_gives_up_waiting_and_then_asks_again():
    waiting, ready = threading.Event(), []

    def handler(request):
        waiting.set()
        return httpx.Response(200, json=answer(request)) if ready else failing_beside_waiting(request, waiting)

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
    client = client_of(lambda request: httpx.Response(200, json=answer(request)), request_tokens=4)
    client.fill(iter(ITEMS), progress=told.append)
    assert [(one.sequences, one.tokens, one.hits) for one in told] == [(2, 4, 2)] * 4


@pytest.mark.parametrize(
    ("status", "body", "error", "line"),
    [
        (422, {"code": "token-out-of-range", "detail": "id 900 …"}, TokenOutOfRange, "^id 900 …$"),
        (404, {"code": "not-cached", "detail": "3 of 4"}, NotCached, "^3 of 4$"),
        (404, {"code": "not-found", "detail": "Not Found"}, TVKDError, "POST .*/v1/potentials answered 404: Not Found"),
        (413, None, PayloadTooLarge, "POST .*/v1/potentials answered 413 .* no reason"),
        (401, None, Unauthorized, "answered 401"),
        (302, None, WrongAnswer, "answered 302 Found"),
        (200, None, WrongAnswer, "is no PotentialsAnswer.*is it a tvkd server"),
    ],
)
def test_a_refusal_keeps_its_class_and_is_not_repeated(status, body, error, line):
    seen = []

    def handler(request):
        seen.append(request)
        problem = {"title": "", "status": status} | (body or {})
        return httpx.Response(status, json=problem) if body else httpx.Response(status, text="<html>")

    with pytest.raises(error, match=line) as caught:
        client_of(handler).potentials([ITEM])
    assert type(caught.value) is error and len(seen) == 1


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


@pytest.mark.parametrize("url", ["127.0.0.1:8077", "ftp://x", "", "http://"])
def test_what_is_no_url_is_refused_at_once(url):
    with pytest.raises(InvalidRequest, match="is not a URL such as"):
        TeacherClient(url)


def test_the_api_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TVKD_API_KEY", "secret")
    headers = []
    client_of(lambda r: headers.append(r.headers) or httpx.Response(200, json=answer(r))).potentials([ITEM])
    assert headers[0]["Authorization"] == "Bearer secret"


def test_the_real_server_answers_what_the_client_accepts(server):
    client = TeacherClient(server.url)
    assert client.teacher().vocab_size == 128 and client.store().bytes_per_token >= 0
    item = TokenItem(prompt_token_ids=[20, 21], completions=[[22, 23, 24], [25]])
    (first, second), (again, _) = client.potentials([item, item], temperatures=[0.5])
    assert first.length == 3 and second.length == 1 and first.values.keys() == {1.0, 0.5}
    assert np.array_equal(first.values[0.5], again.values[0.5])
    with pytest.raises(NotCached):
        client.potentials([TokenItem(prompt_token_ids=[26], completions=[[27]])], cache="only")


def test_one_client_serves_threads_and_a_pickle(server):
    client = TeacherClient(server.url)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda length: length_of_answer(client, length), [1, 2, 3, 4] * 3)) == [1, 2, 3, 4] * 3
    assert length_of_answer(pickle.loads(pickle.dumps(client)), 5) == 5


def test_a_forked_process_opens_connections_of_its_own(server):
    client = TeacherClient(server.url)
    assert length_of_answer(client, 1) == 1
    inherited = client._connections()

    def ask() -> None:
        sys.exit(length_of_answer(client, 2) != 2 or client._connections() is inherited)

    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert length_of_answer(client, 1) == 1 and client._connections() is inherited


def length_of_answer(client: TeacherClient, length: int) -> int:
    item = TokenItem(prompt_token_ids=[30, 31], completions=[[32] * length])
    return client.potentials([item])[0][0].length
