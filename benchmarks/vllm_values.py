"""Values under vLLM beside vLLM's own prompt log-probs and transformers' full logits, in one run on one machine.

    python benchmarks/vllm_values.py [--model DIR] [--pairs 12] [--lengths 256 1024 4096]
    python benchmarks/vllm_values.py --model DIR --pairs 400 --dtype bfloat16 --device cuda --budget 8192 --lengths

The second line is for a GPU. Without --model it is a random one of 32,000 words.

ours             `tvkd serve --engine vllm`, /v1/potentials, cache: skip; V_1, entropy, action logit of each state
prompt_logprobs  vLLM's OpenAI server, /v1/completions, at 1 and 20: normalised, so no value can be computed
full logits      transformers: logsumexp of every sequence's logits, in micro-batches
body only        transformers without an LM head, each sequence whole: what any such way must pay at least

The first table is speed: the best of three rounds, under vLLM after one round that warms up. Tokens are counted as if
nothing were shared: prompt and completion of each sequence. Bytes are those of the answers' bodies for each token of
the completions. Every way has all cores; vLLM runs with the same batch budget, and without compilation.

The second table is memory as completions grow, with two of them after one short prompt. It is the sum of the peaks of
the way's processes while they answer, less what they held at rest: weights, libraries, and under vLLM the whole
key-value cache. What remains are logits and answers.
"""

import argparse
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from teacher_pass import alone, one_pair, pairs
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vllm_servers import CACHE_GIB, Server, logprob_bodies, openai, ours, ours_bodies

from tvkd_server.teachers.teacher import Question

Bodies = Callable[[list[Question]], list[dict[str, Any]]]
BY_VLLM: dict[str, tuple[Callable[[Namespace], AbstractContextManager[Server]], Bodies]] = {
    "ours": (ours, ours_bodies),
    "prompt_logprobs 1": (openai, lambda questions: logprob_bodies(questions, 1)),
    "prompt_logprobs 20": (openai, lambda questions: logprob_bodies(questions, 20)),
}
BY_TRANSFORMERS = ("full logits", "body only")


def random_model(directory: Path, words: int = 32_000) -> Path:
    """A Llama of four layers whose head is most of its work, with a tokenizer, which vLLM's own server wants."""
    from tokenizers import Tokenizer, models

    config = LlamaConfig(
        vocab_size=words, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(words)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(directory)
    return directory


def speeds(questions: list[Question], options: Namespace) -> None:
    states = sum(len(completion) for question in questions for completion in question.completions)
    tokens = states + sum(len(question.prompt) * len(question.completions) for question in questions)
    print(f"\n{len(questions)} pairs, {tokens:,} tokens")
    print(f"{'':20}{'tokens/s':>10}{'bytes/token':>13}{'whole peak MB':>15}{'ours is':>10}")
    base = 0.0
    for way, (start, bodies) in BY_VLLM.items():
        with start(options) as server:
            server.warm_up(bodies(questions))
            seconds, size, peak = min(server.ask_all(bodies(questions)) for _ in range(options.repeats))
        base = base or seconds
        row(way, tokens / seconds, f"{size / states:.0f}", peak, seconds / base)
    for way in BY_TRANSFORMERS:
        if measured := alone(way, None, options):
            speed, resting, above = measured
            row(way, speed, "-", resting + above, tokens / speed / base)


def row(way: str, speed: float, bytes_a_token: str, peak: float, ratio: float) -> None:
    print(f"{way:20}{speed:10.0f}{bytes_a_token:>13}{peak:15.0f}{ratio:9.2f}x", flush=True)


def growth(vocabulary: int, options: Namespace) -> None:
    print("\nMB above the resting memory, one prompt of 16 tokens with two completions of so many tokens each")
    weights = sum(file.stat().st_size for file in options.model.glob("*.safetensors")) / 1e6
    print(f"At rest, weights are {weights:.0f} MB, and vLLM's key-value cache is {CACHE_GIB * 2**30 / 1e6:.0f} MB")
    print(f"{'':20}{'resting':>10}" + "".join(f"{length:>10,}" for length in options.lengths))
    for way, (start, bodies) in BY_VLLM.items():
        with start(options) as server:
            server.warm_up(bodies(one_pair(16, vocabulary)))
            peaks = [server.ask_all(bodies(one_pair(length, vocabulary)))[2] for length in options.lengths]
        numbers = [server.resting, *(peak - server.resting for peak in peaks)]
        print(f"{way:20}" + "".join(f"{number:10.0f}" for number in numbers), flush=True)
    for way in BY_TRANSFORMERS:
        runs = [alone(way, length, options) for length in options.lengths]
        resting = f"{runs[0][1]:10.0f}" if runs[0] else f"{'oom':>10}"
        print(f"{way:20}{resting}" + "".join(f"{run[2]:10.0f}" if run else f"{'oom':>10}" for run in runs), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 1024, 4096], help="none: speed alone")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="transformers' ways; vLLM takes a GPU where there is one")
    parser.add_argument("--budget", type=int, default=1024, help="tokens in a step of vLLM's engine")
    parser.set_defaults(max_batch_tokens=4096, repeats=3, threads=os.cpu_count())
    options = parser.parse_args()
    options.longest = max([512, *options.lengths]) + 64
    with tempfile.TemporaryDirectory() as folder:
        name = options.model.name if options.model else "random"
        options.model = options.model or random_model(Path(folder))
        vocabulary = AutoConfig.from_pretrained(options.model).get_text_config().vocab_size
        print(f"{name}, {vocabulary:,} words; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        speeds(pairs(options.pairs, vocabulary), options)
        if options.lengths:
            growth(vocabulary, options)


if __name__ == "__main__":
    main()
