"""Tokens a second and peak memory of the teacher's pass, beside transformers' own ways to the same numbers.

    python benchmarks/teacher_pass.py --model DIR [--pairs 16] [--max-batch-tokens 4096]

full logits   transformers: every sequence whole, in micro-batches sorted by length, logsumexp of all its logits
body only     the same without an LM head: what any way that reads each sequence whole must pay
ours          the prompt once for its two completions, logits in chunks and of completion states only

Tokens are counted as if nothing were shared: prompt and completion of each sequence. Each way runs in a process of its
own, on the same pairs and with the same budget of padded tokens, and its best time of `--repeats` counts.
Memory is the peak of the process (of the GPU's allocator on a GPU) while it runs, weights included.
"""

import argparse
import asyncio
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tvkd_server.teachers.backbone import Question
from tvkd_server.teachers.transformers_teacher import TransformersTeacher

Way = Callable[[], None]


def pairs(count: int, vocabulary: int) -> list[Question]:
    """Prompts of 96 to 160 tokens with two completions of 64 to 128 each; random tokens cost what real ones do."""
    random = np.random.default_rng(0)

    def ids(shortest: int, longest: int) -> list[int]:
        return random.integers(0, vocabulary, random.integers(shortest, longest + 1)).tolist()

    return [Question(ids(96, 160), [ids(64, 128), ids(64, 128)], (1.0,)) for _ in range(count)]


def ours(questions: list[Question], options: argparse.Namespace) -> Way:
    """Every pair asked at once through the teacher's own interface."""
    teacher = TransformersTeacher.load(
        options.model, dtype=options.dtype, device=options.device, max_batch_tokens=options.max_batch_tokens
    )

    async def ask_all() -> None:
        await asyncio.gather(*(teacher.score(q.prompt, q.completions, q.temperatures) for q in questions))

    return lambda: asyncio.run(ask_all())


def whole_sequences(questions: list[Question], options: argparse.Namespace, *, head: bool) -> Way:
    """Each prompt with each completion, right-padded in micro-batches, through the model or through its body alone."""
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    dtype = "float32" if options.dtype == "auto" and not on_gpu else options.dtype
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to("cuda" if on_gpu else "cpu").eval()
    sequences = sorted((q.prompt + completion for q in questions for completion in q.completions), key=len)
    batches: list[list[list[int]]] = [[]]
    for sequence in sequences:
        if batches[-1] and (len(batches[-1]) + 1) * len(sequence) > options.max_batch_tokens:
            batches.append([])
        batches[-1].append(sequence)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            width = max(map(len, batch))
            ids_RL = torch.tensor([s + [0] * (width - len(s)) for s in batch], device=model.device)
            if head:
                logits_RLV = model(input_ids=ids_RL, use_cache=False).logits
                actions_RL = logits_RLV[:, :-1].gather(2, ids_RL[:, 1:, None])
                torch.logsumexp(logits_RLV.float(), -1).cpu(), actions_RL.cpu()
            else:
                model.base_model(input_ids=ids_RL, use_cache=False).last_hidden_state.sum().cpu()

    return run


def measure(way: str, options: argparse.Namespace) -> tuple[float, float]:
    """Best tokens a second, and peak megabytes."""
    torch.set_num_threads(options.threads)
    vocabulary = AutoConfig.from_pretrained(options.model).get_text_config().vocab_size
    questions = pairs(options.pairs, vocabulary)
    run = ours(questions, options) if way == "ours" else whole_sequences(questions, options, head=way == "full logits")
    reset_peak()
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    tokens = sum(len(q.prompt) + len(completion) for q in questions for completion in q.completions)
    return tokens / min(seconds), peak()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    print(f"{options.model.name}: {options.pairs} pairs, {options.max_batch_tokens} padded tokens a micro-batch")
    print(f"{'':14}{'tokens/s':>10}{'peak MB':>10}{'speed':>10}{'memory':>10}   (against full logits)")
    first: tuple[float, float] | None = None
    for way in ("full logits", "body only", "ours"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            speed, memory = process.submit(measure, way, options).result()
        first = first or (speed, memory)
        print(f"{way:14}{speed:10.0f}{memory:10.0f}{speed / first[0]:9.2f}x{memory / first[1]:9.2f}x", flush=True)


if __name__ == "__main__":
    main()
