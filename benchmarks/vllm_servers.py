"""The servers that `vllm_values.py` measures, tvkd's and vLLM's own, and their cost: seconds, bytes and memory."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from tvkd_server.teachers.teacher import Question

CACHE_GIB = 1
"""The key-value cache on a CPU, the same for all; on a GPU it is what vLLM takes."""


@dataclass
class Server:
    """A running server that has answered one request, and the megabytes that its processes hold since."""

    url: str
    process: int
    resting: float = 0

    def ask_all(self, bodies: list[dict[str, Any]]) -> tuple[float, int, float]:
        """Seconds and bytes of all answers, asked at once, and the peak of memory in megabytes meanwhile."""
        with httpx.Client(base_url=self.url, timeout=None, limits=httpx.Limits(max_connections=None)) as client:

            def ask(body: dict[str, Any]) -> int:
                path = "/v1/potentials" if "items" in body else "/v1/completions"
                return len(client.post(path, json=body).raise_for_status().content)

            self._reset_peak()
            started = time.perf_counter()
            with ThreadPoolExecutor(len(bodies)) as pool:
                sizes = list(pool.map(ask, bodies))
            return time.perf_counter() - started, sum(sizes), self._peak()

    def warm_up(self, bodies: list[dict[str, Any]]) -> None:
        self.ask_all(bodies)
        self._reset_peak()
        self.resting = self._peak()

    def _processes(self) -> list[Path]:
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
        family = [self.process]
        for member in family:
            family += [pid for pid, parent in parents.items() if parent == member]
        return [Path(f"/proc/{pid}") for pid in family if Path(f"/proc/{pid}").exists()]  # `ps` itself has ended

    def _reset_peak(self) -> None:
        if torch.cuda.is_available():  # where the peak is not in the processes' memory
            return
        for process in self._processes():
            (process / "clear_refs").write_text("5")

    def _peak(self) -> float:
        """Sum of the processes' peaks."""
        peaks = [re.search(r"VmHWM:\s+(\d+)", (process / "status").read_text()) for process in self._processes()]
        return sum(int(peak[1]) for peak in peaks if peak) * 1024 / 1e6


def ours_bodies(questions: list[Question]) -> list[dict[str, Any]]:
    return [
        {"items": [{"prompt_token_ids": q.prompt, "completions": q.completions}], "entropy": True, "cache": "skip"}
        for q in questions
    ]


def logprob_bodies(questions: list[Question], k: int) -> list[dict[str, Any]]:
    return [
        {"model": "m", "prompt": question.prompt + completion, "max_tokens": 1, "prompt_logprobs": k}
        for question in questions
        for completion in question.completions
    ]


@contextmanager
def ours(options: Namespace) -> Iterator[Server]:
    command = [sys.executable, "-m", "tvkd.cli", "serve", "--engine", "vllm", *_common(options)]
    command += ["--engine-args", '{"enforce_eager": true}']
    with (
        tempfile.TemporaryDirectory() as store,
        _running([*command, "--store", f"{store}/values"], "/readyz") as server,
    ):
        yield server


@contextmanager
def openai(options: Namespace) -> Iterator[Server]:
    """vLLM's own server."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_common(options)]
    command += ["--enforce-eager", "--served-model-name", "m", "--max-logprobs", "20"]
    with _running(command, "/health") as server:
        yield server


def _common(options: Namespace) -> list[str]:
    return [
        "--model", str(options.model), "--dtype", options.dtype, "--max-model-len", str(options.longest),
        "--max-num-batched-tokens", str(options.budget),
    ]  # fmt: skip


@contextmanager
def _running(command: list[str], ready: str) -> Iterator[Server]:
    """A server on a free port, once it is ready. It computes on all cores, as transformers does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB), "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} ended:\n{log.read().decode()[-3000:]}")
                try:
                    if httpx.get(url + ready).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.5)
            yield Server(url, process.pid)
        finally:
            process.terminate()
            process.wait(60)
