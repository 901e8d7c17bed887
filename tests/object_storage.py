"""Two real S3 servers, moto's and SeaweedFS, on loopback; and a proxy before one of them that loses what is sent."""

import contextlib
import http.client
import itertools
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import obstore
from obstore.store import S3Store

BUCKET = "tvkd"
KEY, SECRET = "testkey", "testsecret"
SERVERS = ("moto", "seaweedfs")


@dataclass
class ObjectStorage:
    """A running S3 server with one bucket."""

    endpoint: str
    anonymous: bool = False
    """Whoever asks is served; else only who has the right key."""

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def bucket(self) -> S3Store:
        """The bucket, past our own code."""
        return S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )


def new_place() -> str:
    """A store of a test's own."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def serving(server: str) -> Iterator[ObjectStorage]:
    """moto, seaweedfs, or rclone, which ignores conditions; ended with all that it left on disk."""
    binary = Path(sys.executable).with_name
    with tempfile.TemporaryDirectory() as folder:
        if server == "moto":
            [port] = _free_ports(1)
            # It looks for an object and then writes it, in two steps: no other thread comes between them.
            undisturbed = "import sys; sys.setswitchinterval(10); from moto.server import main; main()"
            command = [sys.executable, "-c", undisturbed, "-H", "127.0.0.1", "-p", port]
        elif server == "rclone":
            [port] = _free_ports(1)
            (Path(folder) / BUCKET).mkdir()
            command = [binary("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
            command += ["--auth-key", f"{KEY},{SECRET}", folder]
        else:
            master, volume, filer, port, admin = _free_ports(5)
            command = [
                binary("weed"), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={port}",
                "-s3.port.iceberg=0", "-s3.port.lance=0", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false",
                "-master.telemetry=false", f"-bucket={BUCKET}",
            ]  # fmt: skip
        process = subprocess.Popen(
            list(map(str, command)),
            env=os.environ | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "HOME": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        storage = ObjectStorage(f"http://127.0.0.1:{port}", anonymous=server == "moto")
        try:
            _wait_until_it_stores(process, storage, server)
            yield storage
        finally:
            process.kill()
            process.wait()
            if server == "seaweedfs":
                for own in (master, volume, filer, port, admin):
                    for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{own}.sock"):
                        left.unlink()
                    for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{own + 10_000}.sock"):
                        left.unlink()


def _wait_until_it_stores(process: subprocess.Popen[bytes], storage: ObjectStorage, server: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, f"{server} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{server} does not start"
        # In a process of its own: the client's threads in this one would not survive a fork.
        if server == "moto":
            with contextlib.suppress(httpx.TransportError):
                if httpx.put(f"{storage.endpoint}/{BUCKET}").is_success:
                    return
        elif subprocess.run([sys.executable, __file__, storage.endpoint], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and 10,000 above too, where SeaweedFS listens for its own; below those that clients get."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(range(20_000, 22_700))
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            if port not in found:
                found.append(port)
    return found


@dataclass(frozen=True)
class Seen:
    """A request at the proxy: `path` within the store, `conditional` when it asks that nothing be there."""

    method: str
    path: str
    conditional: bool


Fault = Callable[[Seen], str | None]
"""What becomes of a request; None: it is served.

500, 503, 409   it does not arrive, and that is the answer        done-500   it arrives, and that is the answer
drop            it does not arrive, and the connection ends       lose       it arrives, and the connection ends
stall           it does not arrive, and nobody answers            late       it arrives, and nobody answers
                                                                  cut        half of the answer comes
"""


class Proxy:
    """HTTP between the store and a real server. `fault` is asked of every request; `seen` has them all."""

    def __init__(self, behind: ObjectStorage) -> None:
        self.fault: Fault = lambda seen: None
        self.seen: list[Seen] = []
        proxy, upstream = self, behind.endpoint.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0].split("/", 3)[-1]
                seen = Seen(self.command, path, "If-None-Match" in self.headers)
                proxy.seen.append(seen)
                fault = proxy.fault(seen)
                status, headers, answer = 0, {}, b""
                if fault in (None, "lose", "late", "cut", "done-500"):
                    status, headers, answer = self.ask(body)
                if fault in ("stall", "late"):
                    proxy.released.wait(20)
                if fault in ("drop", "lose", "stall", "late"):
                    self.close_connection = True
                    return
                if fault and fault != "cut":
                    status, headers, answer = int(fault[-3:]), {}, b"<Error><Code>Fault</Code></Error>"
                if fault == "cut":
                    self.close_connection, headers = True, headers | {"Content-Length": str(len(answer))}
                    answer = answer[: len(answer) // 2]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(upstream, timeout=20)
                try:
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    connection.endheaders(body)
                    answer = connection.getresponse()
                    dropped = ("transfer-encoding", "connection")
                    headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
                    return answer.status, headers, answer.read()
                finally:
                    connection.close()

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_PUT = do_POST = handle_any  # noqa: N815 - the base class's names

        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.storage = ObjectStorage(f"http://127.0.0.1:{self._server.server_address[1]}")

    def fail(self, fault: str, wanted: Callable[[Seen], bool], times: int = 1) -> None:
        """From now on, that fault for so many of the wanted requests."""
        left = itertools.chain([fault] * times, itertools.repeat(None))
        self.fault = lambda seen: next(left) if wanted(seen) else None

    def heal(self) -> None:
        self.fault = lambda seen: None

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    obstore.put(ObjectStorage(sys.argv[1]).bucket(), "ready", b"")
