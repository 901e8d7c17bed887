"""What a server makes of those who mean harm, fill in bulk or leave, while others ask for a little.

    python benchmarks/service_under_load.py

A real `tvkd serve` with a small random teacher on one core. `/healthz` is asked every 10 ms throughout, and its times
stand beside each measurement. "Beside the teacher" is what a small request takes before and after it is with the
engine, from `Server-Timing`.
"""

import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np
from serving import HEAD, WORDS, Serving, items

from tvkd_shared.arrow_codec import MEDIA_TYPE, encode_request
from tvkd_shared.wire import RequestOptions, TokenItem

KEY, TRANSFER_SECONDS, HALF_OPEN, SMALL, MANY = "a-key-of-the-benchmark", 5, 600, 60, 16_000
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


class Health:
    """Milliseconds of `/healthz`, asked every 10 ms by a process of its own, so that no other client delays it."""

    def __init__(self, url: str) -> None:
        here, self._there = Pipe()
        self._process = Process(target=ask_for_health, args=(url, here), daemon=True)

    def __enter__(self) -> "Health":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()

    def take(self) -> str:
        """What was measured since the last call."""
        self._there.send("take")
        times = sorted(self._there.recv())
        return f"{statistics.median(times):.1f} / {times[int(0.99 * len(times))]:.1f} / {times[-1]:.1f}"


def ask_for_health(url: str, asked: Connection) -> None:
    times = []
    with httpx.Client(timeout=120) as client:
        while True:
            if asked.poll(0.01):
                asked.recv()
                asked.send(times)
                times = []
            started = time.perf_counter()
            client.get(f"{url}/healthz").raise_for_status()
            times.append(1000 * (time.perf_counter() - started))


def refused(server: Serving, at_once: int) -> tuple[list[float], float]:
    """Milliseconds until 401 comes to each of eight clients that send 16 MB without a key; megabytes that it costs."""

    def ask(_: int) -> float:
        started = time.perf_counter()
        with server.connect(HEAD + b"Content-Length: 16777216\r\n\r\n") as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401")
            seconds = time.perf_counter() - started
            with suppress(OSError):
                connection.sendall(b" " * (16 << 20))
        return 1000 * seconds

    server.reset_peak()
    before = server.memory()
    with ThreadPoolExecutor(at_once) as pool:
        times = list(pool.map(ask, range(8)))
    return times, server.peak() - before


def half_open(server: Serving) -> float:
    """Seconds until the last of many connections with half a header or half a body is cut."""
    halves = [b"POST /v1/pot", HEAD + f"Authorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{".encode()]
    started = time.perf_counter()
    connections = [server.connect(halves[number % 2]) for number in range(HALF_OPEN)]
    for connection in connections:
        with connection, suppress(ConnectionResetError):
            while connection.recv(1 << 12):
                pass
    return time.perf_counter() - started


def small(server: Serving, random: np.random.Generator) -> tuple[list[float], list[float]]:
    """Milliseconds of small requests one after another, as a client sees them, and all but their teacher's pass."""
    whole, beside = [], []
    with httpx.Client(headers=AUTHORIZED, timeout=120) as client:
        for _ in range(SMALL):
            started = time.perf_counter()
            answer = client.post(f"{server.url}/v1/potentials", json={"items": items(random, 1)}).raise_for_status()
            whole.append(1000 * (time.perf_counter() - started))
            stages = {
                name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
            }
            beside.append(stages["total"] - stages["teacher"])
    return whole, beside


@contextmanager
def bulk_fill(server: Serving, random: np.random.Generator) -> Iterator[None]:
    """Four requests in bulk under way at any time, from a client of another address than the small ones."""
    ended = threading.Event()
    sent = [{"items": items(random, 60, 100, 200), "return": "digests"} for _ in range(40)]

    def fill(number: int) -> None:
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(headers=AUTHORIZED, timeout=120, transport=transport) as client:
            for body in sent[number::4]:
                if ended.is_set():
                    return
                client.post(f"{server.url}/v1/potentials", json=body)

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(fill, number)
        while not server.metric("tvkd_queued_tokens"):
            time.sleep(0.01)
        try:
            yield
        finally:
            ended.set()


def computed_for_one_who_left(server: Serving, random: np.random.Generator) -> tuple[int, int]:
    """(asked, computed) completions of a client that leaves after 0.7 s."""
    before = server.metric("tvkd_computed_completions_total")
    body = json.dumps({"items": items(random, 1000, 40, 80)}, separators=(",", ":")).encode()
    head = HEAD + f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with server.connect(head + body):
        time.sleep(0.7)
    while server.metric("tvkd_queued_tokens"):
        time.sleep(0.01)
    return 2000, int(server.metric("tvkd_computed_completions_total") - before)


def many(server: Serving, body: bytes) -> float:
    """Seconds of one request by Arrow."""
    headers = AUTHORIZED | {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    started = time.perf_counter()
    httpx.post(f"{server.url}/v1/potentials", content=body, headers=headers, timeout=600).raise_for_status()
    return time.perf_counter() - started


def main() -> None:
    random = np.random.default_rng()
    with tempfile.TemporaryDirectory() as folder:
        server = Serving(Path(folder), "--transfer-seconds", TRANSFER_SECONDS, hidden_size=256, key=KEY)
        try:
            with Health(server.url) as health:
                small(server, random)
                health.take()
                row("", "", "/healthz, ms: median / p99 / most")
                time.sleep(3)
                row("nothing else", "", health.take())
                for way, at_once in (("one by one", 1), ("at once", 8)):
                    times, memory = refused(server, at_once)
                    told = (
                        f"401 after {statistics.median(times):.0f} ms, {max(times):.0f} at most; {memory:.1f} MB more"
                    )
                    row(f"8 bodies of 16 MB without a key, {way}", told, health.take())
                seconds = half_open(server)
                told = f"the last is cut after {seconds:.1f} s; --transfer-seconds {TRANSFER_SECONDS}"
                row(f"{HALF_OPEN} half-open connections", told, health.take())
                alone = [statistics.median(part) for part in small(server, random)]
                told = f"median {alone[0]:.0f} ms; beside the teacher {alone[1]:.1f} ms"
                row("small requests alone", told, health.take())
                with bulk_fill(server, random):
                    health.take()
                    busy = [statistics.median(part) for part in small(server, random)]
                    told = (
                        f"median {busy[0]:.0f} ms, {busy[0] / alone[0]:.1f} times; beside the teacher {busy[1]:.1f} ms"
                    )
                    row("the same under a bulk fill", told, health.take())
                asked, computed = computed_for_one_who_left(server, random)
                row("a client that leaves after 0.7 s", f"{computed:,} of its {asked:,} computed", health.take())
                prompts = [
                    TokenItem(random.integers(0, WORDS, 5), random.integers(0, WORDS, (1, 5))) for _ in range(MANY)
                ]
                body = encode_request(RequestOptions(), prompts)
                for what in (f"one request of {MANY:,} prompts, computed", "the same again, cached"):
                    row(what, f"{many(server, body):.1f} s", health.take())
        finally:
            server.kill()


def row(what: str, told: str, health: str) -> None:
    print(f"| {what} | {told} | {health} |", flush=True)
    if not what:
        print("|---|---|---|")


if __name__ == "__main__":
    main()
