"""Thousands of requests that no client would send, at a real server's socket.

    python tests/socket_fuzz.py --cases 100000 [--seed 0]

Bodies of JSON and Arrow with bytes changed, cut and repeated; requests that stop anywhere; and games with the request
line, headers and chunks. The server must never answer 5xx, must keep its memory, and must compute afterwards.
"""

import argparse
import random
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from running_server import RunningServer, start_server
from tvkd_shared import arrow_codec
from tvkd_shared.wire import RequestOptions, TokenItem

Random = random.Random

ARROW, JSON = arrow_codec.MEDIA_TYPE.encode(), b"application/json"
JSON_BODIES = [
    b'{"items": [{"prompt_token_ids": [9, 10], "completions": [[11, 12], [13]]}]}',
    b'{"temperatures": [1.0, 2], "entropy": true, "cache": "use", "return": "values", "items": [{"prompt": "w9 w10",'
    b' "completions": ["w11 w12"], "append_eos": true}]}',
    b'{"items": [{"prompt": [{"role": "user", "content": "w9"}], "completions": ["w10"]}], "teacher_id": null}',
]
ARROW_BODIES = [
    arrow_codec.encode_request(RequestOptions(), [TokenItem([9, 10], [[11, 12], [13]]), TokenItem([14], [[15]])]),
    arrow_codec.encode_request(RequestOptions(temperatures=[0.5], entropy=True), [TokenItem([9], [[11] * 50])]),
]
JSON_PIECES = [
    b"[" * 500, b"{" * 500, b"-1", b"1e400", b"NaN", b"null", b"4294967296", b"99999999999999999999", b'"\\ud800"',
    b"\xff",
    b"\0", b"true", b"[]", b"{}", b'""', b"0.5", b'"\xf0\x9f\x98\x80"', b"[[]]", b'"items":', b"-0", b"127", b"128",
]  # fmt: skip
LINES = [
    b"POST /v1/potentials HTTP/1.1", b"POST  /v1/potentials  HTTP/1.1", b"POST /v1/potentials HTTP/9.9", b"POST",
    b"G\0T / HTTP/1.1", b"GET /v1/%00%ff HTTP/1.1", b"GET /../../etc/passwd HTTP/1.1", b"GET //v1//potentials HTTP/1.1",
    b"PRI * HTTP/2.0", b"CONNECT a:1 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"TRACE / HTTP/1.1", b"BREW / HTTP/1.1",
    b"GET http://other/metrics HTTP/1.1", b"GET /v1/store?" + b"a" * 9000 + b" HTTP/1.1",
    b"POST /v1/potentials HTTP/1.0",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /healthz", b"HEAD /readyz HTTP/1.1",
    b"PUT /v1/teacher HTTP/1.1",
]  # fmt: skip
HEADERS = [
    b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: 99999999999999999999", b"Content-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 4", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"Expect: 100-continue", b"Expect: tea",
    b"Content-Encoding: zstd",
    b"Accept: \xff;q=x", b"Accept: text/html", b"Accept: application/json;q=0, */*;q=0", b"Upgrade: websocket",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA", b"Sec-WebSocket-Key: x\r\nUpgrade: websocket",
    b"X-Request-Id: a\r b", b"X-Request-Id: " + b"z" * 5000, b"Authorization: Bearer", b"Authorization: \xc3\xa9",
    b": no name", b"No-Colon", b" folded: yes", b"Host: a\r\nHost: b", b"A: " + b"b" * 70000, b"\0: \0",
    b"Content-Type: application/json; charset=utf-16", b"Content-Type: " + ARROW, b"traceparent: 00-x-y-z",
    *(b"H%d: x" % number for number in range(5)), b"Range: bytes=0-1", b"Cookie: " + b"a=b;" * 500,
]  # fmt: skip


def changed(body: bytes, chance: Random, pieces: list[bytes]) -> bytes:
    """A body with some bytes changed, inserted, removed or repeated."""
    text = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((1, 1, 4, 16)))
        match chance.randrange(5):
            case 0 if at < len(text):
                text[at] ^= 1 << chance.randrange(8)
            case 1:
                text[at:end] = chance.choice(pieces)
            case 2:
                text[at:at] = chance.choice(pieces)
            case 3:
                del text[at:end]
            case _:
                text[at:end] = text[at:end] * chance.choice((2, 2, 40))
    return bytes(text)


def fuzzed_body(chance: Random) -> bytes:
    is_arrow = chance.random() < 0.5
    numbers = [struct.pack("<i", number) for number in (-1, 0, 127, 128, 2**31 - 1, -(2**31))]
    body = changed(chance.choice(ARROW_BODIES), chance, numbers) if is_arrow else b""
    body = body or changed(chance.choice(JSON_BODIES), chance, JSON_PIECES)
    accept = chance.choice((ARROW, JSON))
    return (
        b"POST /v1/potentials HTTP/1.1\r\nHost: tvkd\r\nConnection: close\r\nContent-Type: "
        + (ARROW if is_arrow else JSON)
        + b"\r\nAccept: %b\r\nContent-Length: %d\r\n\r\n%b" % (accept, len(body), body)
    )


def header_game(chance: Random) -> bytes:
    head = [chance.choice(LINES if chance.random() < 0.5 else LINES[:1])]
    head += chance.choices(HEADERS, k=chance.choice((0, 1, 1, 2, 4)))
    if chance.random() < 0.02:
        head += [b"Many-%d: x" % number for number in range(2000)]
    body = chance.choice(
        (b"", JSON_BODIES[0], b"3\r\n{}\n\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFF\r\nx", b"-1\r\nx\r\n", b"zz\r\n")
    )
    end = chance.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"))
    return end.join([*head, b"", body]) * chance.choice((1, 1, 1, 2))


def fuzz(port: int, chance: Random) -> tuple[str, bytes]:
    """Send one case. Returns its kind and what was answered, which is nothing to a client that did not wait."""
    kind = chance.choice(("body", "body", "cut", "header"))
    sent = header_game(chance) if kind == "header" else fuzzed_body(chance)
    if kind == "cut":
        sent = sent[: chance.randrange(len(sent))]
    with socket.socket() as connection:
        connection.settimeout(0.2 if kind == "header" else 60)
        connection.connect(("127.0.0.1", port))
        answer = b""
        try:
            connection.sendall(sent)
            while kind != "cut" and (part := connection.recv(1 << 16)):
                answer += part
        except (TimeoutError, ConnectionError) as error:
            if kind == "body":
                raise AssertionError(f"no answer, but {error!r}, to {sent!r}") from error
        if chance.random() < 0.3:  # leave as a process that is killed does
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    faults = re.findall(rb"^HTTP/1\.1 5\d\d [^\r]*", answer, re.MULTILINE)
    assert not faults and (answer or kind != "body"), f"{answer[:300]!r} was answered to {sent!r}"
    return kind, answer[9:12]


def run(server: RunningServer, cases: int, seed: int, say: Callable[[str], None]) -> Counter[tuple[str, bytes]]:
    """Send the cases; returns how often each kind was answered with which status. Raises AssertionError."""
    port, process = httpx.URL(server.url).port, psutil.Process(server.process.pid)
    item = {"items": [{"prompt_token_ids": [9], "completions": [[10, 11]]}]}
    first = httpx.post(f"{server.url}/v1/potentials", json=item, timeout=60).raise_for_status().json()
    answered: Counter[tuple[str, bytes]] = Counter()
    memory, started = [], time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for part in range(10):
            numbers = range(part * cases // 10, (part + 1) * cases // 10)
            answered.update(pool.map(lambda number: fuzz(port, Random(f"{seed} {number}")), numbers))
            memory.append(process.memory_info().rss / 1e6)
            say(f"{numbers.stop:,} cases, {time.perf_counter() - started:.0f} s, {memory[-1]:.0f} MB")
    # What the first cases load stays; after them nothing may grow but the log of the store, until it is sealed.
    assert memory[-1] < memory[1] + 40, f"memory grew: {memory}"
    again = httpx.post(f"{server.url}/v1/potentials", json=item, timeout=60).raise_for_status().json()
    for one in (first, again):
        del one["items"][0]["completions"][0]["cached"]
    assert again == first and httpx.get(f"{server.url}/readyz").status_code == 200
    assert not [line for line in server.log if "Traceback" in line], "".join(server.log[-50:])
    return answered


def main() -> None:
    from conftest import tiny_teacher

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    class Folders:
        def mktemp(self, _name: str) -> Path:
            return Path(tempfile.mkdtemp())

    server = start_server(tiny_teacher.__wrapped__(Folders()), Path(tempfile.mkdtemp()) / "values")
    try:
        answered = run(server, arguments.cases, arguments.seed, print)
    finally:
        server.kill()
    for (kind, status), count in sorted(answered.items()):
        print(f"{kind:8}{status.decode() or 'nothing':9}{count:>8,}")


if __name__ == "__main__":
    main()
