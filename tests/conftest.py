"""Real parts for every test: a small random teacher on disk, and a real server process in front of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@dataclass
class RunningServer:
    """A `tvkd serve` process and what it wrote."""

    process: subprocess.Popen[str]
    url: str
    store_path: Path
    teacher_directory: Path
    log: list[str] = field(default_factory=list)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
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
            if found := re.search(r"listening on (http://\S+)", line):
                server.url = found[1]
                listening.set()
        listening.set()

    threading.Thread(target=read_log, daemon=True).start()
    assert listening.wait(120) and server.url, "".join(server.log)
    deadline = time.monotonic() + 120
    while ready:
        assert process.poll() is None and time.monotonic() < deadline, "".join(server.log)
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                break
        time.sleep(0.05)
    return server


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A random Llama of two layers over 128 words, float32, with a word tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("teacher") / "tiny-llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    model.save_pretrained(directory)
    special = ["<unk>", "<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<system>", "\n"]
    vocabulary = {word: index for index, word in enumerate([*special, *(f"w{i}" for i in range(len(special), WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>", "<system>", "\n"], chat_template=CHAT_TEMPLATE,
        model_max_length=256,
    ).save_pretrained(directory)  # fmt: skip
    return directory


@pytest.fixture(scope="session")
def server(tiny_teacher, tmp_path_factory) -> Iterator[RunningServer]:
    """One real server for the session. Tests share its store: use sequences of your own when you count."""
    running = start_server(tiny_teacher, tmp_path_factory.mktemp("store") / "values")
    yield running
    running.kill()
