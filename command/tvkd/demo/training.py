"""Three runs from one student, one seed, one order of pairs: DPO, TVKD, and TVKD with another pair's shaping."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from tvkd.demo.student import batched_log_probs, load
from tvkd_client.config import TVKDConfig
from tvkd_client.source import ValueSource
from tvkd_client.trainer import TVKDTrainer
from tvkd_shared.shaping import Shaping

BATCH = 8
BETA = 0.1
LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Of the student alone, without shaping, over held-out pairs: r = β·(log π_θ/π_ref of chosen − of rejected).

    accuracy  share of pairs with r > 0
    error     standard error of the accuracy
    margin    mean r
    loss      mean of −log σ(r); log 2 = 0.693 before training
    """

    accuracy: float
    error: float
    margin: float
    loss: float


class _Bar(TrainerCallback):
    def __init__(self, title: str, console: Console) -> None:
        self._progress = Progress(console=console)
        self._title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._task = self._progress.add_task(self._title, total=state.max_steps)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress.stop()


def align(
    title: str,
    student: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    output: Path,
    *,
    alpha: float,
    shaping: Shaping,
    source: ValueSource,
    seed: int,
    console: Console,
) -> PreTrainedModel:
    """The student after one pass over the pairs. Reference log-probs are computed once and reused by later runs."""
    config = TVKDConfig(
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        beta=BETA,
        max_length=None,
        precompute_ref_log_probs=True,
        alpha=alpha,
        **asdict(shaping),
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    policy = load(student)
    trainer = TVKDTrainer(
        policy,
        args=config,
        train_dataset=pairs,
        sources={"teacher": source},
        processing_class=tokenizer,
        callbacks=[_Bar(title, console)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return policy


def pair_log_probs(student: PreTrainedModel, tokens: Dataset) -> torch.Tensor:
    """log π(chosen | prompt) and log π(rejected | prompt) of each pair, in nats, float32 [N, 2]."""
    prompts: Sequence[Sequence[int]] = tokens["prompt_ids"][:]
    return torch.stack(
        [batched_log_probs(student, prompts, tokens[side][:]) for side in ("chosen_ids", "rejected_ids")], 1
    )


def held_out(policy_N2: torch.Tensor, reference_N2: torch.Tensor) -> HeldOut:
    """Compares a trained student with the student it began as, both as `pair_log_probs`."""
    reward_N2 = BETA * (policy_N2 - reference_N2)
    margin_N = reward_N2[:, 0] - reward_N2[:, 1]
    accuracy = (margin_N > 0).double().mean().item()
    error = math.sqrt(accuracy * (1 - accuracy) / len(margin_N))
    return HeldOut(accuracy, error, margin_N.mean().item(), -logsigmoid(margin_N).mean().item())
