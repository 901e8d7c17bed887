"""Answers that a real server streams: their order, their values, and what is seen when something ends them early."""

import asyncio
import json
import re
import signal
import time

import httpx
import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from raw_http import connect, read
from running_server import start_server
from small_models import save
from tvkd_client import AsyncTeacherClient, TeacherClient
from tvkd_shared import arrow_codec
from tvkd_shared.arrow_stream import AnswerReader
from tvkd_shared.errors import InvalidRequest, NotCached, TeacherMismatch, TeacherUnavailable
from tvkd_shared.wire import RequestOptions, TokenItem

ARROW = arrow_codec.MEDIA_TYPE
COMPUTED = "tvkd_computed_completions_total"
SLOW = ("--max-batch-tokens", "256")
"""A pass holds few items, so that a request takes many."""
EVERYTHING = 10**6
"""Tokens in one request: all of a test's."""


def items_of(first, count=60, length=100):
    """Items that nobody else asks for, if `first` is another."""
    return [TokenItem([first, 9 + n % 100, 9 + n // 100], [[20] * length, [21 + n % 100]]) for n in range(count)]


def body_of(items, **options):
    return arrow_codec.encode_request(RequestOptions(stream=True, **options), items)


def asking(server, items, **options):
    """A request for a stream that is answered as it is read."""
    headers = {"content-type": ARROW, "accept": ARROW}
    return httpx.stream(
        "POST", f"{server.url}/v1/potentials", content=body_of(items, **options), headers=headers, timeout=60
    )


def raw(items, **options):
    body = body_of(items, **options)
    head = f"POST /v1/potentials HTTP/1.1\r\nHost: tvkd\r\nContent-Type: {ARROW}\r\nAccept: {ARROW}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def left(server):
    """How many clients did not wait for their answers."""
    found = re.search(
        r'^tvkd_requests_total{outcome="disconnected"} (\S+)$', httpx.get(f"{server.url}/metrics").text, re.M
    )
    return float(found[1]) if found else 0.0


def until(true, seconds=60):
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds
        time.sleep(0.01)


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
    items = items_of(17)
    with asking(slow, items) as first:
        until(lambda: slow.metric("tvkd_queued_tokens"))
        times = [time.monotonic()]
        for _ in TeacherClient(slow.url, request_tokens=EVERYTHING).stream(items):
            times.append(time.monotonic())
        first.read()
    assert times[1] - times[0] < (times[-1] - times[0]) / 2


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


def test_a_reader_that_does_not_read_is_cut_and_the_teacher_goes_on(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--transfer-seconds", "1")
    temperatures = [1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.5, 2.0]  # 8 MB, more than the buffers on the way hold
    TeacherClient(server.url).fill(items_of(25, 900, 200), temperatures)
    with connect(server, raw(items_of(25, 900, 200), temperatures=temperatures), SO_RCVBUF=4096) as connection:
        connection.recv(1000)
        until(lambda: server.metric("tvkd_connections") == 1)
        answer = read(connection)
    assert not answer.endswith(b"0\r\n\r\n")
    assert len(list(TeacherClient(server.url).stream(items_of(25, 2)))) == 2
    assert not [line for line in server.log if "Traceback" in line]
    server.kill()


BROKEN = 400


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A server whose teacher has no finite numbers for one token."""
    folder = tmp_path_factory.mktemp("faulty")
    teacher = save("llama", folder / "teacher")
    weights = load_file(teacher / "model.safetensors")
    weights["model.embed_tokens.weight"][BROKEN] = float("inf")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    server = start_server(teacher, folder / "values", "--device", "cpu")
    yield server
    server.kill()


WITH_A_BAD_ONE = [TokenItem([9], [[10]]), TokenItem([9, 10], [[11], [BROKEN, 12]]), TokenItem([13], [[14]])]


def test_one_bad_item_comes_as_an_error_behind_the_others(faulty):
    async def ask(came):
        async with AsyncTeacherClient(faulty.url) as client:
            async for index, _ in client.stream(WITH_A_BAD_ONE):
                came.append(index)

    for call in (lambda came: [came.append(index) for index, _ in TeacherClient(faulty.url).stream(WITH_A_BAD_ONE)],
                 lambda came: asyncio.run(ask(came))):  # fmt: skip
        came = []
        with pytest.raises(TeacherUnavailable, match="not all finite"):
            call(came)
        assert sorted(came) == [0, 2]


def test_an_answer_that_ends_early_is_no_whole_answer_to_any_client(faulty):
    pieces = bytearray()
    with asking(faulty, WITH_A_BAD_ONE) as answer, pytest.raises(httpx.RemoteProtocolError):
        for piece in answer.iter_raw():
            pieces += piece
    reader = AnswerReader(RequestOptions().columns())
    *parts, last = reader.feed(bytes(pieces))
    assert not reader.ended and last.problem.code == "teacher-unavailable" and not last.completions
    assert {row for part in parts for row in part.completions} == {0, 3}
    assert faulty.metric('tvkd_requests_total{outcome="teacher-unavailable"}') >= 1
    assert [line for line in faulty.log if "a streamed answer ends early: teacher-unavailable" in line]
    assert not [line for line in faulty.log if "Traceback" in line]


def test_a_deadline_amid_a_stream_ends_it_and_the_client_asks_for_the_rest(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", *SLOW, "--request-seconds", "0.5")
    items = items_of(26, 200)
    with asking(server, items_of(27, 200)) as answer, pytest.raises(httpx.RemoteProtocolError):
        reader = AnswerReader(RequestOptions().columns())
        for piece in answer.iter_raw():
            for part in reader.feed(piece):
                last = part
    assert (last.problem.code, last.retry_after) == ("teacher-unavailable", 5.0)
    before = server.metric(COMPUTED)
    came = [index for index, _ in TeacherClient(server.url, request_tokens=EVERYTHING).stream(items)]
    assert sorted(came) == list(range(200))
    assert server.metric('tvkd_requests_total{outcome="teacher-unavailable"}') > 1
    assert server.metric(COMPUTED) - before == 400
    server.kill()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_amid_a_stream_loses_nothing(tiny_teacher, tmp_path, signum):
    server = start_server(tiny_teacher, tmp_path / "values", *SLOW, "--drain-seconds", "1")
    flags = (*SLOW, "--port", httpx.URL(server.url).port)
    items, running = items_of(28, 1000), [server]

    def stream(client):
        for number, (index, records) in enumerate(client.stream(items)):
            if number == 5:
                server.process.send_signal(signum)
                server.process.wait(60)
                running.append(start_server(tiny_teacher, tmp_path / "values", *map(str, flags)))
            yield index, records

    try:
        came = dict(stream(TeacherClient(server.url, request_tokens=EVERYTHING, patience=60)))
        assert came.keys() == set(range(1000)) and 0 < running[1].metric(COMPUTED) < 2000
        whole = TeacherClient(server.url).potentials(items, cache="only")
    finally:
        for one in running:
            one.kill()
    assert not [line for one in running for line in one.log if "Traceback" in line]
    for index, records in came.items():
        for one, other in zip(records, whole[index], strict=True):
            np.testing.assert_array_equal(one.numbers, other.numbers)


def test_a_server_that_is_gone_for_good_is_an_error_and_no_short_answer(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", *SLOW)
    came = []
    with pytest.raises(TeacherUnavailable, match="cannot reach"):
        for index, _ in TeacherClient(server.url, request_tokens=EVERYTHING, patience=1).stream(items_of(29, 400)):
            came.append(index)
            server.process.kill()
    assert 0 < len(came) < 400
