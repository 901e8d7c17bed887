"""The team's topology as processes: replicas on one bucket behind a plain proxy, killed one by one under load."""

import random
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from installed import installed

from object_storage import BUCKET, serving
from running_server import WORDS, start_server
from tvkd_client.http import TeacherClient
from tvkd_shared.wire import TokenItem

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
REPLICAS = 3
SECONDS_FOR_ONE = 60.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answering(url):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
def ended():
    """Ends what a test started."""
    with ExitStack() as stack:

        def start(command):
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)

        yield start


@pytest.fixture
def bucket():
    """The variables under which an S3 server with an empty bucket is reached."""
    with serving("seaweedfs") as storage:
        yield storage.environment


@pytest.fixture
def proxy(ended, tmp_path):
    """Starts the documented proxy before servers on the given ports; returns its URL."""
    program = installed("haproxy", "Debian's haproxy")

    def start(ports):
        port = free_port()
        text, _, _ = CONFIGURATION.read_text().partition("    server ")
        text = text.replace("bind 127.0.0.1:8070", f"bind 127.0.0.1:{port}")
        servers = "".join(f"    server replica-{number} 127.0.0.1:{there}\n" for number, there in enumerate(ports))
        (tmp_path / "haproxy.cfg").write_text(text + servers)
        ended([program, "-f", tmp_path / "haproxy.cfg"])
        answering(f"http://127.0.0.1:{port}")
        return f"http://127.0.0.1:{port}"

    return start


def item(number):
    """A prompt and two completions that no other number has."""
    words = random.Random(number)
    return TokenItem(
        prompt_token_ids=[words.randrange(9, WORDS) for _ in range(40)],
        completions=[[words.randrange(9, WORDS) for _ in range(30)] for _ in range(2)],
    )


@pytest.mark.crash
@pytest.mark.timeout(600)
def test_replicas_killed_one_by_one_under_load_cost_their_clients_time_and_no_error(
    tiny_teacher, bucket, proxy, tmp_path
):
    ports = [free_port() for _ in range(REPLICAS)]

    def start(number):
        environment = bucket | {"XDG_CACHE_HOME": str(tmp_path / f"cache-{number}"), "TVKD_API_KEY": "key"}
        return start_server(tiny_teacher, f"s3://{BUCKET}/values", "--port", ports[number], environment=environment)

    with ThreadPoolExecutor(REPLICAS) as pool:
        replicas = list(pool.map(start, range(REPLICAS)))
    url, over, seconds, given = proxy(ports), threading.Event(), [], {}

    def load(client_number):
        client = TeacherClient(url, api_key="key")
        number = client_number * 1_000_000
        while not over.is_set():
            began = time.monotonic()
            given[number] = client.potentials([item(number)])
            seconds.append(time.monotonic() - began)
            number += 1

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(load, number) for number in range(6)]
        try:
            for number, signalled in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
                time.sleep(3)
                replicas[number].process.send_signal(signalled)
                replicas[number].process.wait(60)
                replicas[number] = start(number)
            time.sleep(3)
        finally:
            over.set()
    for client in clients:
        client.result()  # raises what the client met
    assert len(given) > 100 and max(seconds) < SECONDS_FOR_ONE
    print(f"{len(given)} requests, median {sorted(seconds)[len(seconds) // 2]:.2f} s, slowest {max(seconds):.1f} s")

    sample = random.Random(0).sample(sorted(given), 50)
    for replica in replicas:
        computed = replica.metric("tvkd_computed_completions_total")
        client = TeacherClient(replica.url, api_key="key")
        for number in sample:
            assert same(client.potentials([item(number)], cache="only"), given[number])
        assert replica.metric("tvkd_computed_completions_total") == computed
    for replica in replicas:
        replica.kill()


def same(answer, earlier):
    return all(
        np.array_equal(a.values[1.0], b.values[1.0]) and np.array_equal(a.action_logits, b.action_logits)
        for now, then in zip(answer, earlier, strict=True)
        for a, b in zip(now, then, strict=True)
    )
