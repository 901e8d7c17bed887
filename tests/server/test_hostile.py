"""Clients that mean harm, or behave as if: what they send is refused before work, and others are answered meanwhile."""

import json
import time

import httpx
import pytest
from streams import SLOW

from raw_http import HEAD, connect, read
from running_server import start_server

ITEM = {"prompt_token_ids": [9], "completions": [[10, 11, 12]]}


@pytest.fixture(scope="module")
def impatient(tiny_teacher, tmp_path_factory):
    """A server with an API key that takes few connections and cuts slow ones."""
    flags = ["--max-connections", "20", "--transfer-seconds", "1"]
    folder = tmp_path_factory.mktemp("impatient")
    server = start_server(tiny_teacher, folder / "values", *flags, environment={"TVKD_API_KEY": "s3cret"})
    yield server
    server.kill()


@pytest.mark.parametrize(("key", "status"), [(b"wrong", b"401"), (b"s3cret", b"413")])
def test_a_large_body_is_refused_before_any_of_it_is_sent(impatient, key, status):
    head = HEAD + b"Authorization: Bearer " + key + b"\r\nContent-Length: 16777216\r\n\r\n"
    with connect(impatient, head) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 " + status)


def test_a_refused_body_is_read_to_its_end_so_that_the_answer_arrives(impatient):
    answer = httpx.post(f"{impatient.url}/v1/potentials", content=b" " * (16 << 20), timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/pot",
        HEAD + b"Authorization: Bearer s3cret\r\nContent-Length: 100\r\n\r\n{",
        HEAD + b"Authorization: Bearer s3cret\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        HEAD + b"Content-Length: 100\r\n\r\n{",
    ],
    ids=[
        "nothing",
        "half a header",
        "half a body",
        "half a chunked body",
        "half a refused body",
    ],
)
def test_a_connection_whose_request_does_not_arrive_is_cut(impatient, sent):
    with connect(impatient, sent) as connection:
        read(connection)  # ends when the server cuts the connection


def test_a_second_request_that_does_not_arrive_is_cut(impatient):
    with connect(impatient, b"GET /healthz HTTP/1.1\r\nHost: tvkd\r\n\r\n") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz")
        read(connection)


def test_a_connection_whose_answer_is_not_read_is_cut(impatient):
    body = json.dumps({"items": [{"prompt_token_ids": [9], "completions": [[10 + n // 90, 10 + n % 90] * 100]}
                                 for n in range(1000)]}).encode()  # fmt: skip
    head = HEAD + b"Authorization: Bearer s3cret\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(impatient, head + body, SO_RCVBUF=4096) as connection:
        length = int(connection.recv(1000).partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while impatient.metric("tvkd_connections") > 1:
            pass
        assert len(read(connection)) < length


def test_a_client_that_leaves_amid_its_body_is_no_fault_of_the_server(impatient):
    def left():
        return impatient.metric('tvkd_requests_total{outcome="disconnected"}')

    head = HEAD + b"Authorization: Bearer s3cret\r\nContent-Length: 100\r\n\r\n{"
    connect(impatient, head).close()
    before = time.monotonic()
    while not left():
        assert time.monotonic() - before < 60
    assert "Traceback" not in "".join(impatient.log)


def test_half_open_connections_keep_nobody_out(impatient):
    half_open = [connect(impatient, b"GET /healthz") for _ in range(60)]
    assert httpx.get(f"{impatient.url}/healthz").status_code == 200
    for connection in half_open:
        connection.close()


def test_a_connection_too_many_is_told_to_come_again(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--max-connections", "2", *SLOW)
    items = [{"prompt_token_ids": [9 + n % 100] * 120, "completions": [[9 + n % 99] * 120]} for n in range(900)]
    bodies = [json.dumps({"items": asked}).encode() for asked in (items, [ITEM])]
    first, second = (HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies)
    with connect(server, first):
        while not server.metric("tvkd_queued_tokens"):
            pass
        with connect(server, second):
            time.sleep(1)
            answer = httpx.get(f"{server.url}/healthz")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "overloaded", "1")
    server.kill()


def test_too_many_mistakes_and_too_many_completions_are_one_line(server):
    unknown = httpx.post(f"{server.url}/v1/potentials", json={f"field{n}": n for n in range(20_000)}, timeout=60)
    assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid-request")
    assert "unknown fields" in unknown.json()["detail"] and len(unknown.json()["detail"]) < 200
    many = httpx.post(
        f"{server.url}/v1/potentials", json={"items": [{"prompt_token_ids": [9], "completions": [[9]] * 17_000}]}
    )
    assert (many.status_code, many.json()["code"]) == (413, "payload-too-large")
