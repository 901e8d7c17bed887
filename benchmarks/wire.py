"""What a cached answer costs the server's processor, through HTTP, as Arrow and as JSON, beside a bare FastAPI app.

    python benchmarks/wire.py [--requests 300] [--tokens 300]

A real `tvkd serve` with a tiny random teacher, pinned to one core, is asked again and again for 64 completions (32
prompts with two each) that its store holds in sealed segments, with entropies. The time is the CPU time of the
server's process, user and system, so that the asking process costs nothing. The bare app, under the same uvicorn,
decodes the same Arrow request with pyarrow and encodes an answer of the same bytes: it neither checks, nor makes keys,
nor looks anything up.
Tokens are those of the completions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
from transformers import LlamaConfig, LlamaForCausalLM

from tvkd_shared import arrow_codec
from tvkd_shared.wire import PotentialsRequest, RequestOptions, TokenItem

WORDS, PROMPTS, PROMPT = 1000, 32, 100
ARROW, JSON = arrow_codec.MEDIA_TYPE, "application/json"


def teacher(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=4096, **sizes)).save_pretrained(folder)
    return folder


def bodies(tokens: int) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    items = [
        TokenItem(random.integers(0, WORDS, PROMPT), [random.integers(0, WORDS, tokens) for _ in range(2)])
        for _ in range(PROMPTS)
    ]
    lists = [
        {"prompt_token_ids": item.prompt_token_ids.tolist(), "completions": [ids.tolist() for ids in item.completions]}
        for item in items
    ]
    json = PotentialsRequest(entropy=True, items=lists).model_dump_json(by_alias=True, exclude_none=True)
    return {ARROW: arrow_codec.encode_request(RequestOptions(entropy=True), items), JSON: json.encode()}


def echo(port: int) -> None:
    """The bare app. What is posted to /answer becomes the answer to everything that is posted to /."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app, kept = FastAPI(), {}

    @app.post("/answer")
    async def answer(request: Request) -> None:
        kept["table"] = pa.ipc.open_stream(await request.body()).read_all()

    @app.post("/")
    async def post(request: Request) -> Response:
        pa.ipc.open_stream(await request.body()).read_all()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, kept["table"].schema) as stream:
            stream.write_table(kept["table"])
        return Response(sink.getvalue().to_pybytes(), media_type=ARROW)

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def started(command: list[str], url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        try:
            if httpx.get(url).status_code in (200, 405):
                os.sched_setaffinity(process.pid, {0})
                for thread in psutil.Process(process.pid).threads():
                    os.sched_setaffinity(thread.id, {0})
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def cpu_seconds(process: subprocess.Popen[bytes], ask: Callable[[], httpx.Response], requests: int) -> float:
    """CPU seconds of the process for one request, the best of three rounds."""
    rounds = []
    for _ in range(3):
        before = psutil.Process(process.pid).cpu_times()
        for _ in range(requests):
            ask().raise_for_status()
        after = psutil.Process(process.pid).cpu_times()
        rounds.append((after.user + after.system - before.user - before.system) / requests)
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--port", type=int, default=18077)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo:
        echo(arguments.port)
        return
    body = bodies(arguments.tokens)
    ours, bare = (f"http://127.0.0.1:{arguments.port + offset}" for offset in (0, 1))
    with tempfile.TemporaryDirectory() as temporary, httpx.Client(timeout=120) as client:
        model = teacher(Path(temporary) / "teacher")
        serve = ["-m", "tvkd.cli", "serve", "--model", model, "--store", f"{temporary}/store"]
        serve += ["--port", arguments.port, "--seal-bytes", 1000]
        echoing = [__file__, "--echo", "--port", arguments.port + 1]
        server = started([sys.executable, *map(str, serve)], f"{ours}/readyz")
        other = started([sys.executable, *map(str, echoing)], f"{bare}/answer")
        try:

            def ask(url: str, reading: str, writing: str) -> httpx.Response:
                return client.post(url, content=body[reading], headers={"Content-Type": reading, "Accept": writing})

            potentials = f"{ours}/v1/potentials"
            ask(potentials, JSON, JSON).raise_for_status()
            time.sleep(3)  # until what was computed is sealed into a segment
            client.post(f"{bare}/answer", content=ask(potentials, ARROW, ARROW).content).raise_for_status()
            tokens = 2 * PROMPTS * arguments.tokens
            print(f"{2 * PROMPTS} completions × {arguments.tokens} tokens a request, all cached, with entropies\n")
            print(f"{'':22}{'request':>10}{'answer':>10}{'CPU ms':>8}{'tokens / CPU s':>16}")
            for name, process, url, media_type in (
                ("tvkd, Arrow", server, potentials, ARROW),
                ("tvkd, JSON", server, potentials, JSON),
                ("bare FastAPI, Arrow", other, bare, ARROW),
            ):
                answer = ask(url, media_type, media_type)
                requests = arguments.requests if media_type == ARROW else max(1, arguments.requests // 5)
                seconds = cpu_seconds(process, lambda u=url, m=media_type: ask(u, m, m), requests)
                sizes = f"{len(body[media_type]) / 1e3:>7.0f} kB{len(answer.content) / 1e3:>7.0f} kB"
                print(f"{name:22}{sizes}{1e3 * seconds:>8.2f}{tokens / seconds:>16,.0f}")
        finally:
            server.kill()
            other.kill()


if __name__ == "__main__":
    main()
