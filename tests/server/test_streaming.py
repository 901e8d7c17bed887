"""Answers that a real server streams: their order, their values, and who asks for them."""

import asyncio
import json

import httpx
import numpy as np
import pyarrow as pa
import pytest
from streams import ARROW, COMPUTED, EVERYTHING, SLOW, asking, items_of, left, until

from running_server import start_server
from tvkd_client import AsyncTeacherClient, TeacherClient
from tvkd_shared.errors import InvalidRequest, NotCached, TeacherMismatch
from tvkd_shared.wire import TokenItem


@pytest.fixture(scope="module")
def slow(tiny_teacher, tmp_path_factory):
    server = start_server(tiny_teacher, tmp_path_factory.mktemp("slow") / "values", *SLOW)
    yield server
    server.kill()


def test_a_stream_has_the_values_of_the_whole_answer_and_each_item_once(slow):
    client = TeacherClient(slow.url, request_tokens=EVERYTHING)
    items = items_of(10)
    streamed = list(client.stream(items, temperatures=[0.5]))
    assert sorted(index for index, _ in streamed) == list(range(len(items)))
    whole = client.potentials(items, temperatures=[0.5], cache="only")
    for index, records in streamed:
        for one, other in zip(records, whole[index], strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)


def test_what_is_there_comes_before_what_is_still_computed(slow):
    client, items = TeacherClient(slow.url, request_tokens=EVERYTHING), items_of(11)
    client.potentials(items[-3:-1])
    streamed = client.stream(items)
    assert {next(streamed)[0], next(streamed)[0]} == {len(items) - 3, len(items) - 2}
    next(streamed)
    assert slow.metric("tvkd_queued_tokens") > 0
    assert len(list(streamed)) == len(items) - 3


def test_items_that_share_a_completion_all_come(slow):
    items = [TokenItem([12, 13], [[14], [15], [14]]), TokenItem([12, 13], [[14]]), TokenItem([12, 13], [[15], [15]])]
    assert sorted(index for index, _ in TeacherClient(slow.url).stream(items)) == [0, 1, 2]


def test_two_streams_of_the_same_items_at_once_compute_them_once(slow):
    items, before = items_of(16), slow.metric(COMPUTED)

    async def both():
        async with AsyncTeacherClient(slow.url, request_tokens=EVERYTHING) as client:

            async def one():
                return {index: records async for index, records in client.stream(items)}

            return await asyncio.gather(one(), one())

    first, second = asyncio.run(both())
    assert slow.metric(COMPUTED) - before == 2 * len(items)
    assert first.keys() == second.keys() == set(range(len(items)))
    for index, records in first.items():
        for one, other in zip(records, second[index], strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)


def test_the_one_who_waits_for_anothers_items_gets_each_when_it_is_there(slow):
    items = items_of(17, 200)
    with asking(slow, items) as first:
        until(lambda: slow.metric("tvkd_queued_tokens"))
        others = TeacherClient(slow.url, request_tokens=EVERYTHING).stream(items)
        half = [next(others)[0] for _ in range(len(items) // 2)]
        assert slow.metric("tvkd_queued_tokens") > 0
        assert len({*half, *(index for index, _ in others)}) == len(items)
        first.read()


def test_a_streamed_answer_has_an_id_no_length_and_no_timing_and_is_counted(slow):
    ok = 'tvkd_requests_total{outcome="ok"}'
    before = slow.metric(ok)
    with asking(slow, items_of(18, 2)) as answer:
        answer.read()
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW) and answer.headers["x-request-id"]
    assert not {"content-length", "server-timing"} & set(answer.headers)
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 4
    until(lambda: slow.metric(ok) == before + 1)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"cache": "only"}, 404, "not-cached"),
        ({"teacher_id": "b" * 32}, 409, "teacher-mismatch"),
        ({"temperatures": [100.0]}, 422, "temperature-not-served"),
    ],
)
def test_what_is_wrong_before_the_first_item_has_its_status(slow, options, status, code):
    with asking(slow, items_of(19, 2), **options) as answer:
        problem = json.loads(answer.read())
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json" and "server-timing" in answer.headers


def test_the_client_raises_what_is_wrong_before_the_first_item(slow):
    client = TeacherClient(slow.url)
    with pytest.raises(NotCached):
        list(client.stream(items_of(20, 2), cache="only"))
    with pytest.raises(InvalidRequest, match=r"items\[1\]"):
        list(client.stream([*items_of(20, 1), TokenItem([1], [])]))
    with pytest.raises(TeacherMismatch):
        list(TeacherClient(slow.url, teacher_id="b" * 32).stream(items_of(20, 2)))


def test_a_stream_is_arrow_and_of_values(slow):
    json_item = {"stream": True, "items": [{"prompt_token_ids": [9], "completions": [[10]]}]}
    for body, line in ((json_item, f"Accept: {ARROW}"), (json_item | {"return": "digests"}, "return is digests")):
        answer = httpx.post(f"{slow.url}/v1/potentials", json=body)
        assert answer.status_code == 422 and line in answer.json()["detail"]
    answer = httpx.post(f"{slow.url}/v1/potentials", json=json_item, headers={"accept": ARROW})
    assert pa.ipc.open_stream(answer.content).read_all().num_rows == 1


def test_text_is_streamed_too(slow):
    items = [{"prompt": "w20", "completions": [" w30", " w31 w32"]}, {"prompt": "w21", "completions": [" w30"]}]
    headers = {"accept": ARROW}
    streamed, whole = (
        pa.ipc.open_stream(httpx.post(f"{slow.url}/v1/potentials", json=body, headers=headers).content).read_all()
        for body in ({"items": items, "stream": True}, {"items": items})
    )
    rows = {row["row"]: row for row in streamed.to_pylist()}
    for number, row in enumerate(whole.to_pylist()):
        assert row | {"cached": 0} == rows[number] | {"cached": 0}


def test_nothing_more_is_computed_for_a_client_that_left_amid_a_stream(slow):
    before, others = slow.metric(COMPUTED), left(slow)
    with asking(slow, items_of(22, 400)) as answer:
        next(answer.iter_raw())
    until(lambda: slow.metric("tvkd_queued_tokens") == 0)
    assert slow.metric(COMPUTED) - before < 400
    until(lambda: left(slow) == others + 1)


def test_leaving_the_client_s_iterator_early_leaves_the_server_too(slow):
    before = slow.metric(COMPUTED)
    for _ in TeacherClient(slow.url, request_tokens=EVERYTHING).stream(items_of(23, 400)):
        break

    async def leave():
        async with AsyncTeacherClient(slow.url, request_tokens=EVERYTHING) as client:
            async for _ in client.stream(items_of(24, 400)):
                break

    asyncio.run(leave())
    until(lambda: slow.metric("tvkd_queued_tokens") == 0)
    assert slow.metric(COMPUTED) - before < 1000
