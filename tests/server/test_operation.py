"""Running the server: keys, limits, readiness, stopping."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from running_server import start_server

ITEM = {"prompt_token_ids": [9], "completions": [[10, 11, 12]]}


@pytest.fixture(scope="module")
def guarded(tiny_teacher, tmp_path_factory):
    """A server with an API key and a queue and requests so small that limits are met."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "key").write_text("s3cret\n")
    flags = ["--max-queued-tokens", "300", "--max-request-tokens", "250", "--max-request-bytes", "5000"]
    server = start_server(tiny_teacher, folder / "values", "--api-key-file", folder / "key", *flags)
    yield server
    server.kill()


def post(server, items, key="s3cret"):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{server.url}/v1/potentials", json={"items": items}, headers=headers, timeout=60)


@pytest.mark.parametrize("key", [None, "wrong", "s3cret2", "é"])
def test_without_the_api_key_nothing_under_v1_answers(guarded, key):
    headers = {"authorization": f"Bearer {key}".encode()} if key is not None else {}
    for answer in (
        httpx.post(f"{guarded.url}/v1/potentials", json={"items": [ITEM]}, headers=headers),
        httpx.get(f"{guarded.url}/v1/teacher", headers=headers),
        httpx.get(f"{guarded.url}/v1/store", headers=headers),
        httpx.get(f"{guarded.url}/v1/vocabulary", headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{guarded.url}/readyz").status_code == 200
    assert post(guarded, [ITEM]).status_code == 200


def test_a_body_or_a_request_too_large_is_refused(guarded):
    many_bytes = {"prompt_token_ids": [9], "completions": [[10] * 2000]}
    many_tokens = [{"prompt_token_ids": [9] * 5, "completions": [[10] * 200, [11] * 200]}]
    for items in ([many_bytes], many_tokens):
        answer = post(guarded, items)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload-too-large")


def test_a_body_without_a_length_is_counted_too(guarded):
    def stream():
        for _ in range(100):
            yield b" " * 100

    answer = httpx.post(
        f"{guarded.url}/v1/potentials", content=stream(), headers={"authorization": "Bearer s3cret"}, timeout=60
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "payload-too-large")


def test_overload_is_429_with_a_time_to_retry_and_the_server_lives(guarded):
    def ask(number):
        return post(guarded, [{"prompt_token_ids": [9, 20 + number], "completions": [[10] * 200]}])

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["code"] == "overloaded" and int(answer.headers["retry-after"]) >= 1
    assert ask(100).status_code == 200


def test_a_stopped_server_exits_0_and_keeps_its_values(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values")
    first = post(server, [ITEM], key=None).json()["items"][0]["completions"][0]
    assert server.stop() == 0
    server = start_server(tiny_teacher, tmp_path / "values", environment={"TVKD_API_KEY": "from-environment"})
    assert post(server, [ITEM], key=None).status_code == 401
    second = post(server, [ITEM], key="from-environment").json()["items"][0]["completions"][0]
    assert second == first | {"cached": True}
    server.kill()


def test_what_a_stopping_server_has_no_time_for_is_to_be_asked_again(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--drain-seconds", "1")
    items = [{"prompt_token_ids": [9 + n % 100] * 120, "completions": [[9 + n % 99] * 120]} for n in range(900)]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, items, key=None)
        while server.metric("tvkd_queued_tokens") == 0:
            time.sleep(0.05)
        assert server.stop() == 0
    assert (answer.result().status_code, answer.result().json()["code"]) == (503, "teacher-unavailable")
    assert int(answer.result().headers["retry-after"]) >= 1
