"""Bad input gets one clear line and the right code, and nothing is lost by it.

A bad item among good ones, a sequence too long, another teacher and a broken body stand in test_potentials.py, a body
too large and overload in test_operation.py, another tokenizer in tests/client, a store on a bad disk in tests/store.
"""

import contextlib
import subprocess

import httpx
import pytest

from running_server import refusal_of, start_server

GOOD = {"prompt_token_ids": [9], "completions": [[10, 11]]}


def post(server, body):
    content = {"content": body, "headers": {"content-type": "application/json"}} if isinstance(body, str) else {}
    return httpx.post(f"{server.url}/v1/potentials", **(content or {"json": body}), timeout=300)


def line_of(answer, status, code):
    """The one line of a problem, which must have this status and code."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json" and "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


@pytest.mark.parametrize(
    ("code", "place", "items", "rest"),
    [
        ("invalid-request", "prompt_token_ids[0]", [GOOD | {"prompt_token_ids": [-1]}], {}),
        ("invalid-request", "completions[0][1]", [GOOD | {"completions": [[10, -1]]}], {}),
        ("invalid-request", "completions[0][0]", [GOOD | {"completions": [[2**32]]}], {}),
        ("invalid-request", "completions[0][0]", [GOOD | {"completions": [[10.5]]}], {}),
        ("invalid-request", "completions[0][0]", [GOOD | {"completions": [["10"]]}], {}),
        ("token-out-of-range", "items[0]", [GOOD | {"prompt_token_ids": [128]}], {}),
        ("invalid-request", "prompt_token_ids", [GOOD | {"prompt_token_ids": []}], {}),
        ("invalid-request", "completions[0]", [GOOD | {"completions": [[]]}], {}),
        ("invalid-request", "completions", [GOOD | {"completions": []}], {}),
        ("invalid-request", "prompt", [{"prompt": "", "completions": ["w10"]}], {}),
        ("invalid-request", "completions[1]", [{"prompt": "w9 ", "completions": ["w10", ""]}], {}),
        ("invalid-request", "items", [], {}),
        ("invalid-request", "weight", [GOOD | {"weight": 1}], {}),
        ("invalid-request", "temprature", [GOOD], {"temprature": 1.0}),
        ("invalid-request", "temperatures[0]", [GOOD], {"temperatures": [0.0]}),
        ("invalid-request", "temperatures[1]", [GOOD], {"temperatures": [1.0, -1.0]}),
        ("invalid-request", "temperatures", [GOOD], {"temperatures": []}),
    ],
)
def test_a_request_at_fault_is_told_where(server, code, place, items, rest):
    assert place in line_of(post(server, {"items": items} | rest), 422, code)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_temperature_that_is_no_number_is_told_where(server, number):
    body = f'{{"items": [{{"prompt_token_ids": [9], "completions": [[10]]}}], "temperatures": [{number}]}}'
    answer = post(server, body)
    assert answer.status_code in (400, 422) and answer.json()["code"] == "invalid-request"
    assert "\n" not in answer.json()["detail"]


def test_ten_thousand_items_are_answered_or_refused_and_the_server_lives(server):
    def items(count, length):
        return [GOOD | {"completions": [[10 + n // 100, 10 + n % 100] * length]} for n in range(count)]

    answered = post(server, {"items": items(10_000, 1), "return": "digests"})
    assert answered.status_code == 200 and len(answered.json()["items"]) == 10_000
    # 266,200 tokens, more than --max-request-tokens allows by default.
    assert "split it" in line_of(post(server, {"items": items(2_200, 60)}), 413, "payload-too-large")
    assert post(server, {"items": [GOOD]}).status_code == 200


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file):
    with file.open("wb", buffering=0) as writing, contextlib.suppress(OSError):
        while writing.write(bytes(4096)):
            pass


def test_a_full_disk_refuses_new_values_keeps_the_old_and_recovers(tiny_teacher, small_disk):
    server = start_server(tiny_teacher, small_disk / "values")
    try:
        before = post(server, {"items": [GOOD]}).json()["items"]
        fill(small_disk / "ballast")
        new = {"prompt_token_ids": [9], "completions": [[token] * 100 for token in range(20, 30)]}
        for _ in range(2):
            assert "disk is full; it needs free space" in line_of(
                post(server, {"items": [GOOD, new]}), 503, "store-unavailable"
            )
        kept = post(server, {"items": [GOOD], "cache": "only"}).json()["items"]
        assert kept[0]["completions"][0] == before[0]["completions"][0] | {"cached": True}
        (small_disk / "ballast").unlink()
        fresh = post(server, {"items": [GOOD, new]}).json()["items"]
        assert [item["completions"][0]["cached"] for item in fresh] == [True, False]
        assert server.stop() == 0
    finally:
        server.kill()


def test_settings_at_fault_are_named(tmp_path, tiny_teacher, server):
    store, port = ["--store", tmp_path / "values"], ["--port", "0"]
    model = ["--model", tiny_teacher]
    (tmp_path / "empty").mkdir()
    assert "--model is needed" in refusal_of(*store, *port)
    assert "no-such-model" in refusal_of(*store, *port, "--model", tmp_path / "no-such-model")
    assert str(tmp_path / "empty") in refusal_of(*store, *port, "--model", tmp_path / "empty")
    assert "--port" in refusal_of(*store, *model, "--port", "70000")
    assert "Address already in use" in refusal_of(*store, *model, "--port", httpx.URL(server.url).port)
    assert "cannot be read" in refusal_of(*store, *port, *model, "--api-key-file", tmp_path / "nothing")


def test_two_servers_on_one_folder_serve_what_the_other_computed(server, tiny_teacher):
    item = {"prompt_token_ids": [77, 78], "completions": [[79]]}
    second = start_server(tiny_teacher, server.store_path)
    try:
        computed = post(second, {"items": [item]}).json()["items"][0]["completions"][0]
        assert not computed["cached"]
        assert post(server, {"items": [item]}).json()["items"][0]["completions"][0] == computed | {"cached": True}
        assert second.stop() == 0
    finally:
        second.kill()
    assert post(server, {"items": [item]}).json()["items"][0]["completions"][0]["cached"]
