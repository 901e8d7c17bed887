"""No network call that the user did not ask for: every process is watched while it works on local directories."""

import json
import os
import subprocess
import sys

import httpx
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from running_server import start_server

WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        target = str(arguments[1] if event == "socket.connect" else arguments[0])
        with open(os.environ["WATCHED"], "a") as log:
            log.write(f"{event} {target}\\n")
sys.addaudithook(watch)
"""


@pytest.fixture
def watched(tmp_path):
    """An environment in which Python writes down every address it looks up or connects to; the hub is not forbidden."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    environment = {
        "PYTHONPATH": str(tmp_path / "watch"),
        "WATCHED": str(tmp_path / "connections"),
        "HF_HUB_OFFLINE": "0",
    }
    subprocess.run(
        [sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 80)"], env=os.environ | environment
    )
    log = tmp_path / "connections"
    assert "localhost" in log.read_text(), "the watch does not see"
    log.write_text("")
    return environment, lambda: [line for line in log.read_text().splitlines() if not is_local(line)]


def is_local(line):
    return any(local in line for local in ("127.0.0.1", "'::1'", " localhost", " ::1", " /"))


def test_serving_a_local_directory_calls_nobody(tiny_teacher, tmp_path, watched):
    environment, strangers = watched
    server = start_server(tiny_teacher, tmp_path / "values", environment=environment)
    item = {"prompt": [{"role": "user", "content": "w20"}], "completions": ["w30"]}
    assert httpx.post(f"{server.url}/v1/potentials", json={"items": [item]}).status_code == 200
    assert server.stop() == 0
    assert strangers() == []


def test_prefetching_and_training_on_local_directories_call_the_named_server_only(
    server, tiny_teacher, tmp_path, watched
):
    environment, strangers = watched
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w2{n} ", "chosen": "w30 w31", "rejected": "w32"}) + "\n" for n in range(4))
    )
    student = tmp_path / "student"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).save_pretrained(student)
    for file in tiny_teacher.glob("*token*"):
        (student / file.name).write_bytes(file.read_bytes())
    data = ["--dataset", tmp_path / "pairs.jsonl"]
    settings = ["--alpha", "0.5", "--value_source", "server", "--teacher_url", server.url, "--max_steps", "1"]
    settings += ["--output_dir", tmp_path / "out", "--report_to", "none", "--use_cpu", "--bf16", "false"]
    for command in (
        ["prefetch", "--server", server.url, *data, "--tokenizer", tiny_teacher],
        ["train", "--model_name_or_path", student, "--dataset_name", data[1], *settings],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tvkd.cli", *map(str, command)],
            env=os.environ | environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert strangers() == []
