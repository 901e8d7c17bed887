"""What the teacher's full distributions give, the ceiling of what a number a token can: not stored, computed each step.

Each student regresses its whole next-token distribution, at every state of both completions, onto

    p*(a | s) ∝ π_S0(a | s) · π_T1(a | s) / π_T0(a | s)

by the forward KL of p* to π_θ. `objective: token` with strength 1 has the same optimum, and sees one action of each
state. On a vocabulary of 49,152 words p* takes 98 kB a state in bfloat16.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from tvkd.evaluation.command import RESULT, write_outcome
from tvkd.evaluation.loading import load_model
from tvkd.evaluation.outcome import HeldOut, measure, summary_of
from tvkd.study.plan import Run, Study
from tvkd.study.report import Finding
from tvkd.study.training import held_out_rows
from tvkd.study.verdict import Items, difference, mean_of
from tvkd_client.preference_tokens import load_tokenizer, tokenize_preferences
from tvkd_client.train import pairs_of, parse

NOT_SCORED = -1


def ceiling(path: str) -> str:
    """Train and measure with the seeds, data and settings of a study that is done. Returns lines to put under it."""
    study = Study(path)
    runs = [run for run in study.runs if run.arm.settings.get("objective") == "token" and not run.arm.control]
    found: dict[str, dict[int, Any]] = {}
    for run in {run.seed: run for run in runs}.values():
        folder = study.file.output / "full-distributions" / f"seed-{run.seed}"
        if not (folder / RESULT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            _run(study, run, folder)
        for name, numbers in json.loads((folder / RESULT).read_text())["items"].items():
            found.setdefault(name, {})[run.seed] = torch.tensor(numbers).double().numpy()
    return "\n".join(_lines(found, Finding.of(study)))


def _lines(found: dict[str, Items], study: Finding) -> list[str]:
    lines = []
    for name, items in found.items():
        to_dpo = difference(items, study.outcomes[name][str(study.dpo)])
        lines.append(f"full distributions, {name}: {mean_of(items):.3f}; minus DPO's {to_dpo}")
    return lines


def _run(study: Study, run: Run, folder: Path) -> None:
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps(study.settings_of(run) | {"output_dir": str(folder)}))  # JSON is YAML
    script, training, model, mixture = parse(["--config", str(settings)])
    name = str(model.model_name_or_path)
    tokenizer = load_tokenizer(name)
    train = tokenize_preferences(pairs_of(script, training, mixture)["train"], tokenizer)
    lora = LoraConfig(r=model.lora_r, lora_alpha=model.lora_alpha, target_modules="all-linear")
    torch.manual_seed(run.seed)
    student = get_peft_model(load_model(name, "float32"), lora)
    args = TrainingArguments(
        str(folder), seed=run.seed, data_seed=run.seed, max_steps=training.max_steps, report_to="none",
        learning_rate=training.learning_rate, lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps, per_device_train_batch_size=training.per_device_train_batch_size,
        save_strategy="no", logging_steps=10, remove_unused_columns=False,
    )  # fmt: skip
    models = (
        load_model(f"models/{of}", "float32") for of in (str(training.teacher_id), str(training.teacher_reference_id))
    )
    trainer = _Trainer(student, args=args, train_dataset=train, data_collator=_collate)
    trainer.t1, trainer.t0 = models
    seconds = trainer.train().metrics["train_runtime"]
    held_out = study.file.held_out
    how = HeldOut(
        held_out_rows(held_out, script), tokenizer, held_out.beta or training.beta, held_out.samples,
        held_out.max_new_tokens, run.seed,
    )  # fmt: skip
    outcome = measure(student, load_model(name, "float32"), how)
    write_outcome(folder, {"seconds": seconds, **summary_of(outcome)}, outcome.texts)


def _collate(pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Both completions of each pair, filled on the right; `labels` [2B, L] are −1 where nothing is scored."""
    sides = [(pair["prompt_ids"], pair[side]) for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    width = max(len(prompt) + len(completion) for prompt, completion in sides)

    def filled(ids: Sequence[int], fill: int) -> list[int]:
        return [*ids, *[fill] * (width - len(ids))]

    return {
        "input_ids": torch.tensor([filled([*prompt, *answer], 0) for prompt, answer in sides]),
        "attention_mask": torch.tensor([filled([1] * (len(prompt) + len(answer)), 0) for prompt, answer in sides]),
        "labels": torch.tensor(
            [filled([*[NOT_SCORED] * len(prompt), *answer], NOT_SCORED) for prompt, answer in sides]
        ),
    }


class _Trainer(Trainer):
    """Forward KL of p* to the student, the mean over tokens of both completions."""

    t1: Any
    t0: Any

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        scored_NL = inputs.pop("labels")[:, 1:] != NOT_SCORED

        def log_probs(of: Any) -> torch.Tensor:
            return of(**inputs).logits[:, :-1][scored_NL].float().log_softmax(-1)

        with torch.no_grad():
            with model.disable_adapter():
                reference_SV = log_probs(model)
            target_SV = (reference_SV + log_probs(self.t1) - log_probs(self.t0)).log_softmax(-1)
        own_SV = log_probs(model)
        loss = (target_SV.exp() * (target_SV - own_SV)).sum(-1).mean()
        return (loss, None) if return_outputs else loss
