"""What a training step costs, in seconds and memory, beside TRL's own DPOTrainer on the same data.

    python benchmarks/training_step.py [--steps 12] [--rounds 3]

A random Llama of 20 million parameters trains on the CPU in float32, on pairs of 64 tokens of prompt and 64 to 128 of
each completion, four pairs a step. Each run is a process of its own, and the runs take turns, so that another job on
the machine meets all of them. Printed are the median time of a step with its quartiles, the ratios of medians to TRL's
DPOTrainer with a reference model and to DPO with a stored reference, and the peak of the process's resident memory.

    TRL, reference model       DPOTrainer as it comes: the reference is computed in each step
    TRL, precomputed           DPOTrainer with precompute_ref_log_probs; its pass over the data is not counted
    DPO, reference in store    TVKDTrainer with α = 0 and `reference`
    tvkd, in store             objective tvkd with `teacher` and `reference`
    soft-label, in store       objective soft-label with `teacher`, `teacher_reference` and `reference`
    token, in store            objective token with the same
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ARMS: dict[str, dict[str, Any]] = {
    "TRL, reference model": {},
    "TRL, precomputed": {"precompute_ref_log_probs": True},
    "DPO, reference in store": {"alpha": 0.0},
    "tvkd, in store": {"alpha": 0.7},
    "soft-label, in store": {"objective": "soft-label"},
    "token, in store": {"objective": "token"},
}
TRL, DPO = "TRL, reference model", "DPO, reference in store"
PAIRS, BATCH, VOCABULARY = 64, 4, 8000
WARM_UP = 2  # steps that are not counted


def make_models(folder: Path) -> None:
    """The student, and a teacher and its reference that are as small as a teacher may be; one word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<eos>": 0, "<pad>": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    for seed, (name, width, layers) in enumerate((("student", 384, 6), ("teacher", 64, 1), ("before", 64, 1))):
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        config = LlamaConfig(
            vocab_size=VOCABULARY, num_attention_heads=width // 64, eos_token_id=0, pad_token_id=1, **sizes
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)


def make_data(folder: Path) -> None:
    random = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(f"w{number}" for number in random.integers(2, VOCABULARY, words))

    rows = [
        {"prompt": text(64), "chosen": " " + text(random.integers(64, 128)), "rejected": " " + text(96)}
        for _ in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, arm: str, steps: int) -> None:
    """One arm in this process; prints its step times and its peak memory as JSON."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from tvkd_client import TVKDConfig, TVKDTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.began)

    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "max_steps": steps + WARM_UP, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "max_length": None,
    }  # fmt: skip
    store = str(folder / "values")
    places = dict.fromkeys(("teacher", "teacher_reference", "reference"), store)
    ids = {"teacher_id": "teacher", "teacher_reference_id": "before", "reference_id": "student"}
    kind, config = DPOTrainer, DPOConfig
    settings |= ARMS[arm]
    if "store" in arm:
        kind, config = TVKDTrainer, TVKDConfig
        settings |= {"quiet": True} | places | ids
    rows = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / arm))
    args = config(str(folder / "out"), **settings)
    trainer = kind(str(folder / "student"), args=args, train_dataset=rows, callbacks=[Clock()])
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"times": times[WARM_UP:], "peak": peak}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.arm:
        run(asked.folder, asked.arm, asked.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        make_data(folder)
        for model in ("teacher", "before", "student"):
            flags = ["--model", folder / model, "--store", folder / "values", "--dataset", folder / "pairs.jsonl"]
            command = ["prefetch", *flags, "--tokenizer", folder / "student", "--quiet"]
            subprocess.run([sys.executable, "-m", "tvkd.cli", *map(str, command)], check=True, capture_output=True)
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        peaks: dict[str, int] = {}
        for _ in range(asked.rounds):
            for arm in ARMS:
                flags = ["--folder", str(folder), "--arm", arm, "--steps", str(asked.steps)]
                done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
                outcome = json.loads(done.stdout.splitlines()[-1])
                times[arm] += outcome["times"]
                peaks[arm] = max(outcome["peak"], peaks.get(arm, 0))
    print(table(times, peaks))


def table(times: dict[str, list[float]], peaks: dict[str, int]) -> str:
    lines = [f"{'':26}{'step, s':>9}{'25 %':>8}{'75 %':>8}{'ratio to TRL':>14}{'ratio to DPO':>14}{'peak, MB':>10}"]
    of_trl, of_dpo = (statistics.median(times[arm]) for arm in (TRL, DPO))
    for arm, of_arm in times.items():
        low, middle, high = statistics.quantiles(of_arm, method="inclusive")
        ratios = f"{middle / of_trl:14.2f}{middle / of_dpo:14.2f}"
        lines.append(f"{arm:26}{middle:9.3f}{low:8.3f}{high:8.3f}{ratios}{peaks[arm] / 1e6:10.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
