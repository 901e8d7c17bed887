"""Requests for streamed answers, and what a server says of those who left."""

import re
import time

import httpx

from tvkd_shared import arrow_codec
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
