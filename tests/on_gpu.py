"""A teacher on a GPU, beside transformers in float32 on the CPU: the errors of either engine, in either dtype.

    python tests/on_gpu.py [--engine vllm] [--dtype bfloat16] [--model DIR | ARCHITECTURE …]

Without --model, models are small random ones. In 16 bits the model's own rounding is most of an error, so the errors of
transformers' plain full logits in that dtype on the same GPU stand beside ours. One process has one engine under vLLM.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from small_models import ARCHITECTURES, Asked, Expected, save, score_all
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared.errors import TVKDError
from tvkd_shared.record import Record

SHORT = ((5, (7, 1)), (30, (40, 3)), (1, (2,)), (50, (20,)), (9, (9,))) * 2
LONG = (*SHORT, (300, (150, 80)), (20, (600,)), (700, (5, 5)))
"""Tokens of a prompt and of its completions."""


def questions(vocabulary: int, lengths: Sequence[tuple[int, Sequence[int]]]) -> list[Asked]:
    random = np.random.default_rng(0)
    draw = lambda count: random.integers(0, vocabulary, count).tolist()  # noqa: E731
    return [(draw(prompt), [draw(length) for length in completions], [1.0]) for prompt, completions in lengths]


def full_logits(directory: Path, asked: Sequence[Asked], device: str, dtype: str) -> Iterator[Expected]:
    """Of each sequence alone, under transformers: no cache, no padding."""
    config = AutoConfig.from_pretrained(directory).get_text_config()
    # transformers' other ways of attention drop the cap that Gemma 2 puts on its logits.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention)
    model.to(device).eval()
    for prompt, completions, _ in asked:
        for completion in completions:
            with torch.no_grad():
                logits_LV = model(torch.tensor([[*prompt, *completion]], device=device), use_cache=False).logits[0]
            yield Expected(logits_LV[len(prompt) - 1 :].double().cpu().numpy(), completion)


def numbers(expected: Expected) -> np.ndarray:
    return np.concatenate([expected.values(1.0), expected.action_logits, expected.entropies])


def errors_of(directory: Path, options: argparse.Namespace, lengths: Sequence[tuple[int, Sequence[int]]]) -> str:
    asked = questions(AutoConfig.from_pretrained(directory).get_text_config().vocab_size, lengths)
    on_gpu = {} if options.engine == "vllm" else {"device": "cuda"}
    settings = ServeSettings(model=str(directory), engine=options.engine, dtype=options.dtype, **on_gpu)
    try:
        teacher = load_teacher(settings)
    except TVKDError as error:
        return f"refused: {error}"

    async def ask_and_close() -> list[list[Record]]:
        answers = await score_all(teacher, asked)
        await teacher.close()
        return answers

    answers = asyncio.run(ask_and_close())
    records = [record for of_question in answers for record in of_question]
    own = np.concatenate([np.concatenate([r.value(1.0), r.action_logits, r.entropies]) for r in records])
    exact, plain = (
        np.concatenate([numbers(expected) for expected in full_logits(directory, asked, device, dtype)])
        for device, dtype in (("cpu", "float32"), ("cuda", options.dtype))
    )
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
