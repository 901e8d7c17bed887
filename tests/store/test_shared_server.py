"""Replicas of `tvkd serve` on one store in object storage."""

import contextlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from running_server import start_server
from tvkd_client.source import StoreSource


def ask(url, items, **rest):
    answer = httpx.post(f"{url}/v1/potentials", json={"items": items, "temperatures": [1.0, 0.7]} | rest, timeout=60)
    answer.raise_for_status()
    return [completion for item in answer.json()["items"] for completion in item["completions"]]


def item(number):
    """A prompt of its own, and two completions."""
    return {"prompt_token_ids": [8 + number % 100, 9 + number // 100], "completions": [[20, 21, 22], [30]]}


def without_cached(completions):
    return [{name: said for name, said in one.items() if name != "cached"} for one in completions]


@pytest.fixture
def replicas(tiny_teacher, place):
    """Starts one more server on the store."""
    running = []

    def start():
        running.append(start_server(tiny_teacher, place, "--publish-seconds", "0.05"))
        return running[-1]

    yield start
    for server in running:
        server.kill()


@pytest.mark.crash
def test_replicas_share_their_values_and_a_killed_one_loses_none_that_it_answered(replicas, place):
    one, other = replicas(), replicas()
    computed = ask(one.url, [item(n) for n in range(10)])
    served = ask(other.url, [item(n) for n in range(10)])
    assert [completion["cached"] for completion in computed + served] == [False] * 20 + [True] * 20
    assert without_cached(served) == without_cached(computed)

    # Asked of both at once, and computed by both perhaps: what is answered is what is kept.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda server: ask(server.url, [item(n) for n in range(10, 40)]), (one, other))
    assert without_cached(first) == without_cached(second)

    answered = []

    def ask_until_it_is_killed():
        with contextlib.suppress(httpx.HTTPError):
            for n in range(40, 10_000):
                answered.append((n, ask(one.url, [item(n)])))

    asking = threading.Thread(target=ask_until_it_is_killed)
    asking.start()
    time.sleep(2)
    one.kill()
    asking.join()
    assert len(answered) > 2
    again = replicas()
    for server in (other, again):
        for n, completions in answered:
            assert without_cached(ask(server.url, [item(n)], cache="only")) == without_cached(completions)
    counted = [httpx.get(f"{server.url}/v1/store").json() for server in (other, again)]
    assert counted[0]["sequences"] == counted[1]["sequences"] >= 80 + 2 * len(answered)

    # With no server at all.
    source = StoreSource(place, [0.7])
    prompts = [item(n)["prompt_token_ids"] for n in range(10) for _ in range(2)]
    records = source.fetch(prompts, [one for n in range(10) for one in item(n)["completions"]])
    for record, completion in zip(records, computed, strict=True):
        for temperature, values in zip((1.0, 0.7), completion["values"], strict=True):
            assert record.values[temperature].tobytes() == np.array(values, np.float32).tobytes()


def test_a_server_whose_store_cannot_be_opened_ends_with_one_line(tiny_teacher, place, storage, monkeypatch):
    if storage.anonymous:
        place, why = "s3://nobody-made-this/values", "there is no such bucket"
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        why = "403 Forbidden (SignatureDoesNotMatch)"
    command = [sys.executable, "-m", "tvkd.cli", "serve", "--model", str(tiny_teacher), "--store", place, "--port", "0"]
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert time.monotonic() - began < 60
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("tvkd serve: ")]
    assert f"the store {place} cannot be written: " in line and why in line
