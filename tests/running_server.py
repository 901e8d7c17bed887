"""A real `tvkd serve` process, its log and its metrics."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import httpx

from tvkd.cli import main

WORDS = 128
"""Vocabulary of the tiny teacher."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tvkd_server.serve", "tvkd_server.teachers.transformers_teacher", "transformers.models.llama.modeling_llama"]
)


@dataclass
class RunningServer:
    """A `tvkd serve` process and what it wrote."""

    process: "subprocess.Popen[str] | ForkedServer"
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


def serve(command: list[str], environment: dict[str, str], folder: str, stderr: Any) -> None:
    """Run `tvkd serve …` in this process, with that environment, folder and standard error."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(stderr.detach(), 2)
    sys.exit(main(command))


class ForkedServer:
    """`tvkd serve` in a process forked from one that has imported torch and transformers, which take five seconds.

    It has what is used here of `subprocess.Popen`.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        read, write = os.pipe()
        self._process = _FORKS.Process(target=serve, args=(command, environment, str(Path.cwd()), DupFd(write)))
        self._process.start()
        os.close(write)
        self.pid = self._process.pid
        self.stderr = os.fdopen(read, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("tvkd serve", timeout or 0)
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_server(
    teacher: Path, store: Path, *flags: str, environment: dict[str, str] | None = None, ready: bool = True
) -> RunningServer:
    """Start `tvkd serve` on a free port; with `ready`, wait until it answers."""
    command = [*map(str, ["serve", "--model", teacher, "--store", store, "--port", "0", *flags])]
    own, environment = environment or {}, os.environ | (environment or {})
    # Libraries read variables of theirs when they are imported, and an engine of vLLM is more than this process.
    if "vllm" in flags or not all(name.startswith(("TVKD_", "AWS_", "XDG_")) for name in own):
        command = [sys.executable, "-m", "tvkd.cli", *command]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    else:
        process = ForkedServer(command, environment)
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
