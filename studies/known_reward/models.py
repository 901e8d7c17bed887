"""The models of a world, tiny GPT-2 models made by TRL's own trainers, and the preference pairs of its students.

T0   the teacher before its DPO: 2 layers of width 64, SFT on behaviour
T1   the teacher: DPO of T0 on pairs that T0 wrote and the true reward labelled
S0   the student before its training: 1 layer of width 32, SFT on behaviour
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from studies.known_reward.world import EOS, LONGEST, PROMPT, VOCABULARY, World

SETTINGS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "adam_beta2": 0.99,
}  # fmt: skip
SAMPLED_AT_ONCE = 5000


@dataclass(frozen=True)
class Size:
    """How much training a world's models get, and how many pairs a student.

    sft_rows, sft_steps  behaviour for SFT, and steps of 64 rows on it
    dpo_pairs            pairs for the teacher's DPO, which sees each once, 64 a step
    student_pairs        pairs of each seed, from which those to train on are taken
    """

    sft_rows: int = 20_000
    sft_steps: int = 600
    dpo_pairs: int = 20_000
    student_pairs: int = 800


def make_models(world: World, folder: Path, size: Size, seeds: Sequence[int]) -> None:
    """T0, T1 and S0 in a folder, and in pairs.jsonl the pairs of each seed's students."""
    chance = torch.Generator().manual_seed(world.number)
    prompts = world.prompts(size.sft_rows, chance)
    completions = world.behaviour(prompts, chance)
    rows = _sft_rows(prompts, completions)
    _sft(random_model(64, 2, world.number), rows, size.sft_steps, 5e-3, folder / "T0")
    _sft(random_model(32, 1, world.number + 7), rows, size.sft_steps, 1e-2, folder / "S0")
    _dpo(folder / "T0", Dataset.from_list(pairs(world, folder / "T0", size.dpo_pairs, chance)), folder / "T1")
    with (folder / "pairs.jsonl").open("w") as file:
        for seed in seeds:
            of_seed = torch.Generator().manual_seed(77_000 + 100 * world.number + seed)
            for row in pairs(world, folder / "T0", size.student_pairs, of_seed):
                file.write(json.dumps(row | {"seed": seed}) + "\n")


def pairs(world: World, model: Path, count: int, chance: torch.Generator) -> list[dict[str, str]]:
    """Rows prompt, chosen, rejected as text: two samples of a model, labelled by the world.

    Pairs with equal or empty completions are left out.
    """
    prompts = world.prompts(count, chance)
    writer = load(model)
    first, second = (sample(writer, prompts, int(torch.randint(2**31, (), generator=chance))) for _ in range(2))
    chosen, rejected = world.preferences(prompts, first, second, chance)
    rows = zip(prompts.tolist(), chosen.tolist(), rejected.tolist(), strict=True)
    return [
        {"prompt": _text(prompt), "chosen": " " + _text(better), "rejected": " " + _text(worse)}
        for prompt, better, worse in rows
        if better != worse and EOS not in (better[0], worse[0])
    ]


def run(trainer: Trainer) -> None:
    """Trains, and prints nothing of it."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def load(folder: Path) -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def sample(model: GPT2LMHeadModel, prompts: Tensor, seed: int) -> Tensor:
    """One completion a prompt, int64 [N, 14]. The 14th token, if there is one, is always EOS."""
    model.eval()
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for some in prompts.split(SAMPLED_AT_ONCE):
            whole = model.generate(
                some, attention_mask=torch.ones_like(some), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                max_length=PROMPT + LONGEST, forced_eos_token_id=EOS,
            )  # fmt: skip
            missing = PROMPT + LONGEST - whole.size(1)
            parts.append(torch.nn.functional.pad(whole, (0, missing), value=EOS)[:, PROMPT:])
    return torch.cat(parts)


@torch.no_grad()
def log_probs(model: GPT2LMHeadModel, prompts: Tensor, completions: Tensor) -> Tensor:
    """log π of each token in nats, float32 [N, 14], 0 behind EOS."""
    model.eval()
    logits_NLV = model(torch.cat([prompts, completions], 1)).logits[:, PROMPT - 1 : -1]
    return logits_NLV.log_softmax(-1).gather(2, completions[:, :, None])[:, :, 0] * World.is_token(completions)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: "<eos>", "t1" … "t31"."""
    words = {"<eos>": EOS, **{f"t{token}": token for token in range(EOS + 1, VOCABULARY)}}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    words_only.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=words_only, eos_token="<eos>", pad_token="<eos>")


def _text(tokens: Sequence[int]) -> str:
    """The content of a prompt or a completion; TRL puts the end-of-sequence token behind a completion."""
    return " ".join(f"t{token}" for token in tokens if token > EOS)


def random_model(width: int, layers: int, seed: int) -> GPT2LMHeadModel:
    """An untrained model. GPT-2's learned positions let even one layer tell the places of a prompt apart."""
    torch.manual_seed(seed)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_inner=2 * width, n_layer=layers, n_head=4, n_positions=32,
        bos_token_id=None, eos_token_id=EOS, pad_token_id=EOS, **no_dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _sft_rows(prompts: Tensor, completions: Tensor) -> Dataset:
    """Token ids, and the same as labels where they belong to a completion."""
    lengths = PROMPT + World.is_token(completions).sum(1)
    rows = zip(torch.cat([prompts, completions], 1).tolist(), lengths.tolist(), strict=True)
    ids = [row[:length] for row, length in rows]
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100] * PROMPT + row[PROMPT:] for row in ids]})


def _sft(model: GPT2LMHeadModel, rows: Dataset, steps: int, learning_rate: float, target: Path) -> None:
    args = SFTConfig(
        str(target), max_steps=steps, learning_rate=learning_rate, per_device_train_batch_size=64,
        warmup_steps=10, seed=0, **SETTINGS,
    )  # fmt: skip
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer())
    run(trainer)
    trainer.save_model(str(target))


def _dpo(start: Path, rows: Dataset, target: Path) -> None:
    args = DPOConfig(
        str(target), num_train_epochs=1, learning_rate=1e-3, beta=0.3, per_device_train_batch_size=64,
        warmup_steps=10, seed=0, max_length=None, **SETTINGS,
    )  # fmt: skip
    trainer = DPOTrainer(load(start), args=args, train_dataset=rows, processing_class=tokenizer())
    run(trainer)
    trainer.save_model(str(target))
