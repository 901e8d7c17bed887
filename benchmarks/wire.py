"""What a cached answer costs the server's processor, through HTTP, as Arrow and as JSON, beside two floors.

    python benchmarks/wire.py [--requests 300] [--tokens 300]

A real `tvkd serve` with a tiny random teacher, pinned to one core, is asked again and again for 64 completions (32
prompts with two each) that its store holds in sealed segments, with entropies. The time is the CPU time of the
server's process, user and system, so that the asking process costs nothing. Then one completion is asked for at a time.

Beside it stand a bare FastAPI app under the same uvicorn, which decodes the same Arrow request with pyarrow and encodes
an answer of the same bytes: it neither checks, nor makes keys, nor looks anything up; and the store in this process,
which reads the same keys with no server. Tokens are those of the completions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
from transformers import LlamaConfig, LlamaForCausalLM

from tvkd_shared import arrow_codec
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader
from tvkd_shared.wire import PotentialsRequest, RequestOptions, TokenItem

WORDS, PROMPTS, PROMPT = 1000, 32, 100
ARROW, JSON = arrow_codec.MEDIA_TYPE, "application/json"
ONE = "one completion"


def teacher(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=4096, **sizes)).save_pretrained(folder)
    return folder


def bodies(tokens: int) -> dict[str, bytes]:
    """The request by media type, and under ONE its first completion alone."""
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
    options, first = RequestOptions(entropy=True), TokenItem(items[0].prompt_token_ids, items[0].completions[:1])
    encode = arrow_codec.encode_request
    return {ARROW: encode(options, items), JSON: json.encode(), ONE: encode(options, [first])}


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


def cpu_seconds(process: psutil.Process, ask: Callable[[], object], requests: int) -> float:
    """CPU seconds of the process for one request, the best of three rounds."""
    rounds = []
    for _ in range(3):
        before = process.cpu_times()
        for _ in range(requests):
            ask()
        after = process.cpu_times()
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

            def ask(url: str, what: str, media_type: str = ARROW) -> bytes:
                headers = {"Content-Type": media_type, "Accept": media_type}
                return client.post(url, content=body[what], headers=headers).raise_for_status().content

            potentials = f"{ours}/v1/potentials"
            ask(potentials, JSON, JSON)
            time.sleep(3)  # until what was computed is sealed into a segment
            answer = ask(potentials, ARROW)
            client.post(f"{bare}/answer", content=answer).raise_for_status()
            store, columns = StoreReader(f"{temporary}/store"), column_names()
            keys = [row.key for item in arrow_codec.decode_answer(answer, columns).items for row in item.completions]
            get = partial(store.get, keys, columns)
            server_process, echo_process, own = map(psutil.Process, (server.pid, other.pid, os.getpid()))
            tokens = len(keys) * arguments.tokens
            print(f"{len(keys)} completions × {arguments.tokens} tokens a request, all cached, with entropies\n")
            print(f"{'':29}{'request':>10}{'answer':>10}{'CPU ms':>8}{'requests / CPU s':>18}{'tokens / CPU s':>16}")
            for name, process, work, what, share in (
                ("tvkd, Arrow", server_process, partial(ask, potentials, ARROW), ARROW, 1),
                ("tvkd, JSON", server_process, partial(ask, potentials, JSON, JSON), JSON, 1),
                ("tvkd, Arrow, one completion", server_process, partial(ask, potentials, ONE), ONE, len(keys)),
                ("bare FastAPI, Arrow", echo_process, partial(ask, f"{bare}/", ARROW), ARROW, 1),
                ("the store in process", own, get, "", 1),
            ):
                requests = max(1, arguments.requests // 5) if what == JSON else arguments.requests
                seconds = cpu_seconds(process, work, requests)
                sizes = f"{len(body[what]) / 1e3:>7.1f} kB{len(work()) / 1e3:>7.1f} kB" if what else " " * 20
                print(f"{name:29}{sizes}{1e3 * seconds:>8.2f}{1 / seconds:>18,.0f}{tokens / share / seconds:>16,.0f}")
        finally:
            server.kill()
            other.kill()


if __name__ == "__main__":
    main()
