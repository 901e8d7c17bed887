"""HTTP between a client and a real server, on which requests for values can go wrong."""

import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from arrow_answers import changed
from tvkd_shared import arrow_codec
from tvkd_shared.wire import RequestOptions


@dataclass(frozen=True)
class Asked:
    """A request for values, its server, and a server of another model."""

    request: httpx.Request
    server: httpx.Client
    other: httpx.Client

    def answer(self, of: httpx.Client | None = None, body: bytes | None = None) -> httpx.Response:
        body = self.request.content if body is None else body
        kept = {name: value for name, value in self.request.headers.items() if name in ("content-type", "accept")}
        return (of or self.server).request(self.request.method, self.request.url.path, content=body, headers=kept)


Fault = Callable[[Asked], httpx.Response | None]
"""The answer to a request; None: half of the right one comes, and the connection is reset."""


def doctored(change) -> Fault:
    """The right answer after a change; see `arrow_answers.changed`."""
    return lambda asked: httpx.Response(200, content=changed(asked.answer().content, change))


def without_guard(asked: Asked) -> httpx.Response:
    """The other model's answer, from a server that does not look at the id in the request."""
    request = arrow_codec.decode_request(asked.request.content)
    options = RequestOptions.model_validate(request.model_dump(by_alias=True, exclude={"items", "teacher_id"}))
    return asked.answer(asked.other, arrow_codec.encode_request(options, request.items))


class FaultyProxy:
    """Passes requests on to `server`; `fail` says which of those for values go wrong, and how."""

    def __init__(self, server: httpx.Client, other: httpx.Client) -> None:
        self.heal()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = httpx.Request(
                    self.command, f"{proxy.url}{self.path}", content=body, headers=dict(self.headers)
                )
                asked = Asked(request, server, other)
                fault = next(proxy._faults) if self.command == "POST" else None
                answer = fault(asked) if fault else asked.answer()
                content = (answer or asked.answer()).content
                self.send_response(answer.status_code if answer else 200)
                for name in ("Content-Type", "Retry-After"):
                    if answer and name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if answer else content[: len(content) // 2])
                if answer is None:
                    self.close_connection = True
                    # Without waiting for what was sent: the client sees a reset, and no orderly end.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(self.connection.detach())

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_POST = handle_any  # noqa: N815 - the base class's names

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def fail(self, fault: Fault, *, behind: int, times: int | None = None) -> None:
        """From now on that fault, behind so many good answers, so many times or for good."""
        self.seen = 0

        def counted(asked: Asked) -> httpx.Response | None:
            self.seen += 1
            return fault(asked)

        faults = itertools.repeat(counted) if times is None else itertools.repeat(counted, times)
        self._faults = itertools.chain(itertools.repeat(None, behind), faults, itertools.repeat(None))

    def heal(self) -> None:
        self._faults = itertools.repeat(None)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
