"""A value server for one job: a process of its own, on a free loopback port, that ends with the job."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tvkd_shared.errors import InvalidRequest, TeacherUnavailable

USERS_MISTAKE = 2  # exit code
_STARTS_WITHIN = 1800.0  # seconds: the weights of a large model are read and digested first
_STOPS_WITHIN = 60.0


class Server:
    """A running `tvkd serve` and where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = ""

    def counter(self, name: str) -> int:
        """A counter of `GET /metrics`, 0 before its first event."""
        sample = re.search(rf"^{name} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return int(float(sample[1])) if sample else 0


@contextmanager
def running_server(model: Path | str, store: Path | str, log: Path, *flags: str) -> Iterator[Server]:
    """`tvkd serve`, ready; stopped gracefully at the end, which seals its store.

    Raises TeacherUnavailable, with the end of its log, when it dies or is not ready in time; InvalidRequest, with the
    one line that it wrote, when it refuses its settings.
    """
    serve = ["serve", "--host", "127.0.0.1", "--port", "0", f"--model={model}", f"--store={store}", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "tvkd.cli", *serve], stdout=output, stderr=output)
    server = Server(process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < deadline:
        if server.process.poll() == USERS_MISTAKE:
            raise InvalidRequest(_end_of(server.log, 1).removeprefix("tvkd serve: "))
        if server.process.poll() is not None:
            raise TeacherUnavailable(f"the server ended with {server.process.returncode}:\n{_end_of(server.log)}")
        if address := re.search(r"listening on (http://\S+)", server.log.read_text(errors="replace")):
            server.url = address[1]
            try:
                if httpx.get(f"{server.url}/readyz").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # listening, and not answering yet
        time.sleep(0.2)
    raise TeacherUnavailable(f"the server was not ready in {_STARTS_WITHIN:g} s:\n{_end_of(server.log)}")


def _end_of(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
