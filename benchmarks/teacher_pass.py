"""Tokens a second and peak memory of the teacher's pass, beside transformers' own ways to the same numbers.

    python benchmarks/teacher_pass.py --model DIR [--pairs 8] [--lengths 64 256 1024] [--max-batch-tokens 2048]

naive         transformers: every sequence in one padded batch, logsumexp of all its logits at once
full logits   the same in micro-batches sorted by length
ours          the prompt once for its two completions, logits in chunks and of completion states only
body only     micro-batches without an LM head: what any way that reads each sequence whole must pay at least

The first table is speed, on pairs of several lengths. Tokens are counted as if nothing were shared: prompt and
completion of each sequence. The second table is memory as completions grow, with two of them after one short prompt.
Full logits grow by states × vocabulary. Ours holds the logits of at most `head_chunk` (256) states; from there on it
grows by the key-value cache alone: layers × 2 × width of keys × bytes of a number for each token.

Memory is the peak while a way runs, less what it held at rest (weights and libraries). It is that of the process, or of
the GPU's allocator on a GPU. Each number comes from a process of its own; the best time of `--repeats` counts.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.teacher import Question
from tvkd_server.teachers.transformers_teacher import TransformersTeacher
from tvkd_shared.record import column_names

WAYS = ("naive", "full logits", "ours", "body only")
Way = Callable[[], None]


def pairs(count: int, vocabulary: int) -> list[Question]:
    """Prompts of 96 to 160 tokens with two completions of 64 to 128 each; random tokens cost what real ones do."""
    random = np.random.default_rng(0)

    def ids(shortest: int, longest: int) -> list[int]:
        return random.integers(0, vocabulary, random.integers(shortest, longest + 1)).tolist()

    return [Question(ids(96, 160), [ids(64, 128), ids(64, 128)], column_names()) for _ in range(count)]


def one_pair(length: int, vocabulary: int) -> list[Question]:
    """A prompt of 16 tokens with two completions of `length`."""
    random = np.random.default_rng(0)
    prompt, *completions = (random.integers(0, vocabulary, size).tolist() for size in (16, length, length))
    return [Question(prompt, completions, column_names())]


def ours(questions: list[Question], options: argparse.Namespace) -> Way:
    """Every pair asked at once through the teacher's own interface."""
    settings = {name: getattr(options, name) for name in ("dtype", "device", "max_batch_tokens")}
    teacher = TransformersTeacher.load(ServeSettings(model=str(options.model), **settings))

    async def ask_all() -> None:
        await asyncio.gather(*(teacher.score(q.prompt, q.completions, q.columns) for q in questions))

    return lambda: asyncio.run(ask_all())


def whole_sequences(questions: list[Question], options: argparse.Namespace, way: str) -> Way:
    """Each prompt with each completion, right-padded, through the model or through its body alone."""
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    dtype = "float32" if options.dtype == "auto" and not on_gpu else options.dtype
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to("cuda" if on_gpu else "cpu").eval()
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))  # the weights rest in memory now
    sequences = sorted((q.prompt + completion for q in questions for completion in q.completions), key=len)
    batches: list[list[list[int]]] = [[]]
    for sequence in sequences:
        if way != "naive" and batches[-1] and (len(batches[-1]) + 1) * len(sequence) > options.max_batch_tokens:
            batches.append([])
        batches[-1].append(sequence)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            width = max(map(len, batch))
            ids_RL = torch.tensor([s + [0] * (width - len(s)) for s in batch], device=model.device)
            if way == "body only":
                model.base_model(input_ids=ids_RL, use_cache=False).last_hidden_state.sum().cpu()
            else:
                logits_RLV = model(input_ids=ids_RL, use_cache=False).logits
                actions_RL = logits_RLV[:, :-1].gather(2, ids_RL[:, 1:, None])
                torch.logsumexp(logits_RLV.float(), -1).cpu(), actions_RL.cpu()

    return run


def measure(way: str, length: int | None, options: argparse.Namespace) -> tuple[float, float, float]:
    """Best tokens a second, megabytes that rest before, and megabytes of the peak above them."""
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    vocabulary = AutoConfig.from_pretrained(options.model).get_text_config().vocab_size
    questions = pairs(options.pairs, vocabulary) if length is None else one_pair(length, vocabulary)
    run = ours(questions, options) if way == "ours" else whole_sequences(questions, options, way)
    resting = reset_peak()
    seconds = []
    for _ in range(options.repeats if length is None else 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    tokens = sum(len(q.prompt) + len(completion) for q in questions for completion in q.completions)
    return tokens / min(seconds), resting, peak() - resting


def reset_peak() -> float:
    """Memory now, in MB, from which the peak is counted."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def alone(way: str, length: int | None, options: argparse.Namespace) -> tuple[float, float, float] | None:
    """`measure` in a fresh process; None when that died, of memory as a rule."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, way, length, options).result()
    except (BrokenExecutor, torch.OutOfMemoryError):
        return None


def speeds(options: argparse.Namespace) -> None:
    print(f"\n{options.pairs} pairs, prompts of 96 to 160 tokens, completions of 64 to 128")
    print(f"{'':14}{'tokens/s':>10}{'resting MB':>12}{'peak above it':>15}{'whole peak':>12}")
    for way in WAYS:
        if measured := alone(way, None, options):
            speed, resting, above = measured
            print(f"{way:14}{speed:10.0f}{resting:12.0f}{above:15.0f}{resting + above:12.0f}", flush=True)
        else:
            print(f"{way:14}{'out of memory':>22}", flush=True)


def growth(options: argparse.Namespace) -> None:
    print("\nMB above the resting memory, one prompt of 16 tokens with two completions of so many tokens each")
    print(f"{'':14}" + "".join(f"{length:>10,}" for length in options.lengths))
    for way in WAYS:
        runs = [alone(way, length, options) for length in options.lengths]
        print(f"{way:14}" + "".join(f"{run[2]:10.0f}" if run else f"{'oom':>10}" for run in runs), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--max-batch-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    machine = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{options.model.name}, {options.max_batch_tokens} padded tokens a micro-batch; {machine}")
    speeds(options)
    growth(options)


if __name__ == "__main__":
    main()
