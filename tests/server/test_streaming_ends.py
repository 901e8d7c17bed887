"""Streamed answers that end early: by a reader, a bad item, a deadline or a server. No client takes one for whole."""

import asyncio
import signal

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from streams import COMPUTED, EVERYTHING, SLOW, asking, items_of, raw, until

from raw_http import connect, read
from running_server import start_server
from small_models import save
from tvkd_client import AsyncTeacherClient, TeacherClient
from tvkd_shared.arrow_stream import AnswerReader
from tvkd_shared.errors import TeacherUnavailable
from tvkd_shared.wire import RequestOptions, TokenItem


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
