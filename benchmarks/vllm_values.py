"""Values under vLLM beside vLLM's own prompt log-probs and transformers' full logits, in one run on one machine.

    python benchmarks/vllm_values.py --model DIR [--pairs 12]

Without --model it is a random one of 32,000 words.

body only        transformers without an LM head, each sequence whole: what any such way must pay
full logits      transformers: logsumexp of every sequence's logits, in micro-batches
prompt_logprobs  vLLM's OpenAI server, /v1/completions, at 1 and 20: normalised, no value can be had from them
ours             `tvkd serve --engine vllm`, /v1/potentials, cache: skip; V_1, entropy, action logit of each state

Tokens are counted as if nothing were shared: prompt and completion of each sequence. Bytes are those of the answers'
bodies a token of the completions. Memory is the sum of the peaks of the way's processes while it answers, weights and
what it uses of its key-value cache included. All ways of vLLM run with the same batch budget, and without compilation.
"""

import argparse
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
from teacher_pass import measure, pairs
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tvkd_server.teachers.backbone import Question

BUDGET, LONGEST = 1024, 2048


def random_model(directory: Path, words: int = 32_000) -> Path:
    """A Llama of four layers whose head is most of its work, with a tokenizer, which vLLM's own server wants."""
    from tokenizers import Tokenizer, models

    config = LlamaConfig(
        vocab_size=words, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LONGEST,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(words)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(directory)
    return directory


@contextmanager
def running(command: list[str], ready: str) -> Iterator[tuple[str, int]]:
    """A server on a free port: its URL and process id, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
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
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(60)


def family(root: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    found = [root]
    for process in found:
        found += [pid for pid, parent in parents.items() if parent == process]
    return found


def peak(processes: list[int]) -> float:
    """Sum of the peaks in megabytes; a process that has ended counts nothing."""
    texts = [Path(f"/proc/{pid}/status") for pid in processes]
    return sum(int(re.search(r"VmHWM:\s+(\d+)", text.read_text())[1]) for text in texts if text.exists()) * 1024 / 1e6


def ask_all(url: str, process: int, bodies: list[dict]) -> tuple[float, int, float]:
    """Seconds and bytes of all answers, asked at once, and the peak of memory; after one that warms up."""
    with httpx.Client(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as client:

        def ask(body: dict) -> int:
            path = "/v1/potentials" if "items" in body else "/v1/completions"
            return len(client.post(path, json=body).raise_for_status().content)

        ask(bodies[0])
        processes = family(process)
        for pid in processes:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        started = time.perf_counter()
        with ThreadPoolExecutor(len(bodies)) as pool:
            sizes = list(pool.map(ask, bodies))
        return time.perf_counter() - started, sum(sizes), peak(processes)


def ours(model: Path, questions: list[Question]) -> tuple[float, int, float]:
    command = [sys.executable, "-m", "tvkd.cli", "serve", "--engine", "vllm", "--model", str(model)]
    command += ["--max-num-batched-tokens", str(BUDGET), "--max-model-len", str(LONGEST), "--dtype", "float32"]
    command += ["--engine-args", '{"enforce_eager": true}']
    bodies = [
        {"items": [{"prompt_token_ids": one.prompt, "completions": one.completions}], "entropy": True, "cache": "skip"}
        for one in questions
    ]
    with tempfile.TemporaryDirectory() as store, running([*command, "--store", f"{store}/values"], "/readyz") as server:
        return ask_all(*server, bodies)


def prompt_logprobs(model: Path, questions: list[Question]) -> Iterator[tuple[float, int, float]]:
    """vLLM's own server, at k = 1 and k = 20."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--max-num-batched-tokens", str(BUDGET), "--max-model-len", str(LONGEST)]
    command += ["--dtype", "float32", "--enforce-eager", "--served-model-name", "m", "--max-logprobs", "20"]
    with running(command, "/health") as server:
        for k in (1, 20):
            yield ask_all(
                *server,
                [
                    {"model": "m", "prompt": question.prompt + one, "max_tokens": 1, "prompt_logprobs": k}
                    for question in questions
                    for one in question.completions
                ],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder))
        vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
        questions = pairs(options.pairs, vocabulary)
        states = sum(len(one) for question in questions for one in question.completions)
        tokens = states + sum(2 * len(question.prompt) for question in questions)
        name = model.name if options.model else "random"
        print(f"{name}: {vocabulary:,} words, {len(questions)} pairs, {tokens:,} tokens")
        print(f"{'':20}{'tokens/s':>10}{'bytes/token':>13}{'peak MB':>10}{'ours is':>10}")
        ways: dict[str, tuple[float, int, float]] = {}
        ways["ours"] = ours(model, questions)
        for k, seen in zip((1, 20), prompt_logprobs(model, questions), strict=True):
            ways[f"prompt_logprobs {k}"] = seen
        by_transformers = SimpleNamespace(
            model=model, pairs=options.pairs, max_batch_tokens=4096, repeats=1, threads=os.cpu_count(), dtype="float32",
            device="cpu",
        )  # fmt: skip
        for way in ("full logits", "body only"):
            run: Callable[..., tuple[float, float]] = measure
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                speed, memory = process.submit(run, way, by_transformers).result()
            ways[way] = (tokens / speed, 0, memory)
        for way, (seconds, size, memory) in ways.items():
            ratio = seconds / ways["ours"][0]
            bytes_a_token = f"{size / states:.0f}" if size else "-"
            print(f"{way:20}{tokens / seconds:10.0f}{bytes_a_token:>13}{memory:10.0f}{ratio:9.2f}x", flush=True)


if __name__ == "__main__":
    main()
