"""The client trusts no answer. A doctored answer has to come from somewhere: httpx.MockTransport, a documented way to
put a function in place of the network, is it. Everything else asks the real server."""

import multiprocessing
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrow_answers import ITEM, answer, client_of, doctored, read
from tvkd_client.batches import split
from tvkd_client.http import TeacherClient
from tvkd_shared.errors import (
    InvalidRequest,
    NotCached,
    PayloadTooLarge,
    TeacherMismatch,
    TokenOutOfRange,
    TVKDError,
    Unauthorized,
    WrongAnswer,
)
from tvkd_shared.wire import TokenItem


def drop(column):
    def change(_, rows, fields):
        fields[:] = [field for field in fields if field.name != column]
        for row in rows:
            del row[column]

    return change


WRONGS = {
    "another key": lambda _, rows, __: rows[1].update(key=b"0" * 16),
    "the neighbour's key": lambda _, rows, __: rows[0].update(key=rows[1]["key"]),
    "another length": lambda _, rows, __: rows[1].update(length=2),
    "lengths in another order": lambda _, rows, __: (rows[0].update(row=1), rows[1].update(row=0)),
    "a value too few": lambda _, rows, __: rows[1]["value_1"].pop(),
    "an action logit too many": lambda _, rows, __: rows[1]["action_logit"].append(0.0),
    "an entropy too few": lambda _, rows, __: rows[1]["entropy"].pop(),
    "no entropies": drop("entropy"),
    "null entropies": lambda _, rows, __: rows[1].update(entropy=None),
    "a temperature too few": drop("value_2"),
    "NaN": lambda _, rows, __: rows[1]["value_1"].__setitem__(0, float("nan")),
    "infinity": lambda _, rows, __: rows[1]["action_logit"].__setitem__(0, float("inf")),
    "null": lambda _, rows, __: rows[1]["value_1"].__setitem__(0, None),
    "a completion too few": lambda _, rows, __: rows.pop(),
    "a completion twice": lambda _, rows, __: rows.append(dict(rows[1])),
    "no rows": lambda _, rows, __: rows.clear(),
    "a row number that is no row": lambda _, rows, __: rows[1].update(row=7),
    "temperatures in another order": lambda about, *_: about["temperatures"].reverse(),
    "no teacher": lambda about, *_: about.pop("teacher_id"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_an_answer_that_does_not_fit_its_question_raises(wrong):
    with pytest.raises(WrongAnswer):
        doctored(WRONGS[wrong]).potentials([ITEM], temperatures=[1.0, 2.0])


def test_a_wrong_answer_names_item_and_completion():
    with pytest.raises(WrongAnswer, match=r"items\[0\]\.completions\[1\]: key 3030.* came; its tokens have key"):
        doctored(WRONGS["another key"]).potentials([ITEM])


def test_a_right_answer_is_returned_with_1_0_among_its_temperatures():
    first, second = doctored(lambda *_: None).potentials([ITEM], temperatures=[2.0])[0]
    assert set(first.temperatures) == {1.0, 2.0} and first.length == 3 and second.length == 1
    assert first.values[2.0].tolist() == [1.0] * 4


def test_fill_checks_keys_and_counts_what_was_not_stored():
    assert doctored(lambda _, rows, __: rows[0].update(cached=False)).fill([ITEM]) == 1
    with pytest.raises(WrongAnswer, match="key"):
        doctored(WRONGS["another key"]).fill([ITEM])


def test_the_teacher_must_not_change_between_two_answers():
    teachers = iter(["a" * 32, "b" * 32])
    client = client_of(lambda request: answer(request, next(teachers)))
    client.potentials([ITEM])
    with pytest.raises(TeacherMismatch, match=r"b{32}"):
        client.potentials([ITEM])


def test_the_first_teacher_guards_the_next_request():
    asked = []

    def handler(request):
        asked.append(read(request).teacher_id)
        return answer(request)

    client = client_of(handler)
    client.potentials([ITEM])
    client.potentials([ITEM])
    assert asked == [None, "a" * 32]


@given(sizes=st.lists(st.integers(1, 30)), budget=st.integers(1, 40))
def test_split_keeps_order_and_budget(sizes, budget):
    items = [TokenItem([index], [[1] * size]) for index, size in enumerate(sizes)]
    batches = list(split(items, budget))
    assert [item for _, batch in batches for item in batch] == items
    for first, batch in batches:
        assert batch[0].prompt_token_ids == [first]
        assert len(batch) == 1 or sum(1 + len(item.completions[0]) for item in batch) <= budget


def test_many_requests_come_back_in_order():
    def handler(request):
        time.sleep(0.02 if read(request).items[0].prompt_token_ids.tolist() == [0] else 0)
        return answer(request)

    items = [TokenItem([i], [[i] * (i + 1)]) for i in range(12)]
    rows = client_of(handler, request_tokens=3).potentials(items)
    assert [row[0].length for row in rows] == list(range(1, 13))


def test_batches_are_drawn_only_as_they_are_needed():
    drawn = []
    counts = client_of(answer, request_tokens=2, in_flight=2)
    items = (drawn.append(i) or TokenItem([i], [[i]]) for i in range(1000))

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counts.fill(items, progress=stop)
    assert len(drawn) <= 5


@pytest.mark.parametrize(
    ("status", "body", "error", "line"),
    [
        (422, {"code": "token-out-of-range", "detail": "id 900 …"}, TokenOutOfRange, "^id 900 …$"),
        (404, {"code": "not-cached", "detail": "3 of 4"}, NotCached, "^3 of 4$"),
        (404, {"code": "not-found", "detail": "Not Found"}, TVKDError, "POST .*/v1/potentials answered 404: Not Found"),
        (413, None, PayloadTooLarge, "POST .*/v1/potentials answered 413 .* no reason"),
        (401, None, Unauthorized, "answered 401"),
        (302, None, WrongAnswer, "answered 302 Found"),
        (200, None, WrongAnswer, "sent a wrong answer: .*is it a tvkd server"),
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


@pytest.mark.parametrize("url", ["127.0.0.1:8077", "ftp://x", "", "http://"])
def test_what_is_no_url_is_refused_at_once(url):
    with pytest.raises(InvalidRequest, match="is not a URL such as"):
        TeacherClient(url)


def test_the_api_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TVKD_API_KEY", "secret")
    headers = []
    client_of(lambda r: headers.append(r.headers) or answer(r)).potentials([ITEM])
    assert headers[0]["Authorization"] == "Bearer secret"


def test_the_real_server_answers_what_the_client_accepts(server):
    client = TeacherClient(server.url)
    assert client.teacher().vocab_size == 128 and client.store().bytes_per_token >= 0
    item = TokenItem([20, 21], [[22, 23, 24], [25]])
    (first, second), (again, _) = client.potentials([item, item], temperatures=[0.5])
    assert first.length == 3 and second.length == 1 and set(first.temperatures) == {1.0, 0.5}
    assert np.array_equal(first.values[0.5], again.values[0.5])
    with pytest.raises(NotCached):
        client.potentials([TokenItem([26], [[27]])], cache="only")


def test_one_client_serves_threads_and_a_pickle(server):
    client = TeacherClient(server.url)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda length: length_of_answer(client, length), [1, 2, 3, 4] * 3)) == [1, 2, 3, 4] * 3
    assert length_of_answer(pickle.loads(pickle.dumps(client)), 5) == 5


def test_a_forked_process_opens_connections_of_its_own(server):
    client = TeacherClient(server.url)
    assert length_of_answer(client, 1) == 1
    connections = client._client._network.connections
    inherited = connections()

    def ask() -> None:
        sys.exit(length_of_answer(client, 2) != 2 or connections() is inherited)

    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert length_of_answer(client, 1) == 1 and connections() is inherited


def length_of_answer(client: TeacherClient, length: int) -> int:
    item = TokenItem([30, 31], [[32] * length])
    return client.potentials([item])[0][0].length
