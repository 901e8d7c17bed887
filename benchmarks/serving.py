"""A `tvkd serve` with a small random teacher, for the benchmarks that put a server under load."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

WORDS, LONGEST = 1000, 512
HEAD = b"POST /v1/potentials HTTP/1.1\r\nHost: tvkd\r\nContent-Type: application/json\r\n"


def teacher(folder: Path, hidden_size: int) -> Path:
    """A random Llama of four layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_hidden_layers": 4}
    sizes["num_attention_heads"] = 4
    LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=LONGEST, **sizes)).save_pretrained(folder)
    return folder


class Serving:
    """One server on one port and one store, which may be stopped and started again."""

    def __init__(self, folder: Path, *flags: object, hidden_size: int, key: str | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        words = [
            "-m",
            "tvkd.cli",
            "serve",
            "--model",
            teacher(folder / "teacher", hidden_size),
            "--store",
            folder / "store",
        ]
        self._command = [sys.executable, *map(str, [*words, "--port", self.port, *flags])]
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"TVKD_API_KEY": key} if key else {})
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, env=self._environment)
        while self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def memory(self) -> float:
        """Megabytes that the process holds."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def peak(self) -> float:
        """The most megabytes since `reset_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e6

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def connect(self, sent: bytes = b"", **options: int) -> socket.socket:
        """A bare connection, with bytes sent."""
        connection = socket.socket()
        for option, value in options.items():
            connection.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        connection.settimeout(120)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(sent)
        return connection


def items(random: np.random.Generator, count: int, prompt: int = 60, completion: int = 40) -> list[dict[str, list]]:
    """Items of one prompt and two completions that nobody has asked for before."""
    return [
        {
            "prompt_token_ids": random.integers(0, WORDS, prompt).tolist(),
            "completions": random.integers(0, WORDS, (2, completion)).tolist(),
        }
        for _ in range(count)
    ]
