"""A real `tvkd serve` process, its log and its metrics."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

WORDS = 128
"""Vocabulary of the tiny teacher."""


@dataclass
class RunningServer:
    """A `tvkd serve` process and what it wrote."""

    process: subprocess.Popen[str]
    url: str
    store_path: Path
    teacher_directory: Path
    log: list[str] = field(default_factory=list)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start_server(
    teacher: Path, store: Path, *flags: str, environment: dict[str, str] | None = None, ready: bool = True
) -> RunningServer:
    """Start `tvkd serve` on a free port; with `ready`, wait until it answers."""
    command = [sys.executable, "-m", "tvkd.cli", "serve", "--model", teacher, "--store", store, "--port", "0", *flags]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )
    server = RunningServer(process, "", store, teacher)
    listening = threading.Event()

    def read_log() -> None:
        for line in process.stderr:
            server.log.append(line)
            if found := re.search(r"listening on (https?://[^\s\"]+)", line):
                server.url = found[1]
                listening.set()
        listening.set()

    threading.Thread(target=read_log, daemon=True).start()
    assert listening.wait(120) and server.url, "".join(server.log)
    deadline = time.monotonic() + 300  # vLLM, with another job on the machine
    while ready:
        assert process.poll() is None and time.monotonic() < deadline, "".join(server.log)
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                break
        time.sleep(0.05)
    return server


def refusal_of(*flags):
    """Last line of a `tvkd serve` that must end with 2, at once and without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "tvkd.cli", "serve", *map(str, flags)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tvkd serve: ") and "Traceback" not in done.stderr
    return last
