"""A teacher on a GPU, beside transformers in float32 on the CPU: the errors of either engine, in either dtype.

    python tests/on_gpu.py [--engine vllm] [--dtype bfloat16] [--model DIR | ARCHITECTURE …]

Without --model, models are small random ones. In 16 bits the model's own rounding is most of an error, so the errors of
transformers' plain full logits in that dtype on the same GPU stand beside ours. One process has one engine under vLLM.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from small_models import ARCHITECTURES, Asked, Reference, ask_once, save
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared.errors import TVKDError

SHORT = ((5, (7, 1)), (30, (40, 3)), (1, (2,)), (50, (20,)), (9, (9,))) * 2
LONG = (*SHORT, (300, (150, 80)), (20, (600,)), (700, (5, 5)))
"""Tokens of a prompt and of its completions."""


def questions(vocabulary: int, lengths: Sequence[tuple[int, Sequence[int]]]) -> list[Asked]:
    random = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return random.integers(0, vocabulary, count).tolist()

    return [(draw(prompt), [draw(length) for length in completions], [1.0]) for prompt, completions in lengths]


def full_logits(directory: Path, asked: Sequence[Asked], device: str, dtype: str) -> np.ndarray:
    """All numbers, from transformers' full logits of each sequence alone."""
    config = AutoConfig.from_pretrained(directory).get_text_config()
    # transformers' other ways of attention drop the cap that Gemma 2 puts on its logits.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    reference = Reference(directory, attention, device=device, dtype=dtype)
    expected = [reference(prompt, completion) for prompt, completions, _ in asked for completion in completions]
    return np.concatenate([np.concatenate([e.values(1.0), e.action_logits, e.entropies]) for e in expected])


def errors_of(directory: Path, options: argparse.Namespace, lengths: Sequence[tuple[int, Sequence[int]]]) -> str:
    asked = questions(AutoConfig.from_pretrained(directory).get_text_config().vocab_size, lengths)
    on_gpu = {} if options.engine == "vllm" else {"device": "cuda"}
    settings = ServeSettings(model=str(directory), engine=options.engine, dtype=options.dtype, **on_gpu)
    try:
        answers = ask_once(load_teacher(settings), asked)
    except TVKDError as error:
        return f"refused: {error}"
    records = [record for of_question in answers for record in of_question]
    own = np.concatenate([np.concatenate([r.value(1.0), r.action_logits, r.entropies]) for r in records])
    exact = full_logits(directory, asked, "cpu", "float32")
    plain = full_logits(directory, asked, "cuda", options.dtype)
    shown = (f"worst {np.abs(of - exact).max():.1e}, mean {np.abs(of - exact).mean():.1e}" for of in (own, plain))
    return "; plain full logits ".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, {options.engine}, {options.dtype}, torch {torch.__version__}")
    if options.model:
        print(f"{options.model.name}: {errors_of(options.model, options, LONG)}", flush=True)
        return
    for architecture in options.architectures:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{architecture}: {errors_of(save(architecture, Path(folder)), options, SHORT)}", flush=True)


if __name__ == "__main__":
    main()
