"""One run of a study in a process of its own: train an arm, measure the student, write its outcome.

`python -m tvkd.study.training FOLDER` reads the folder's run.json and settings.yaml.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tvkd.evaluation.command import write_outcome
from tvkd.evaluation.harness import task_means
from tvkd.evaluation.loading import load_function, load_model
from tvkd.evaluation.outcome import HeldOut, measure, summary_of
from tvkd.study.controls import TrainingPairs, controlled
from tvkd.study.plan import HeldOutFile, is_relative
from tvkd_client.config import TVKDConfig
from tvkd_client.dataset import DataArguments, load_preferences
from tvkd_client.preference_tokens import load_tokenizer, tokenize_preferences
from tvkd_client.preview import scores_of
from tvkd_client.roles import open_sources
from tvkd_client.source import StoreSource, ValueSource
from tvkd_client.survey import mean_advantage
from tvkd_client.train import build, pairs_of, parse
from tvkd_client.training_settings import Role
from tvkd_shared.dispatch import exit_code
from tvkd_shared.ending import Ending, declared_eos
from tvkd_shared.shaping import Shaping
from tvkd_shared.value import Float64

RUN, SETTINGS = "run.json", "settings.yaml"


def run(folder: Path) -> int:
    """Train and measure. Returns 0. Raises the errors of `tvkd_shared.errors`."""
    given = json.loads((folder / RUN).read_text(encoding="utf-8"))
    held_out = HeldOutFile.model_validate(given["held_out"])
    script, training, model, mixture = parse(["--config", str(folder / SETTINGS)])
    reward = load_function(held_out.reward) if held_out.reward else None
    pairs = pairs_of(script, training, mixture)
    student = str(model.model_name_or_path)
    tokenizer = load_tokenizer(student)
    opened, sources = open_sources(training, {}), None
    if given["control"]:
        tokens = tokenize_preferences(pairs["train"], tokenizer)
        sources = _controlled(given["control"], training, opened, tokens, Ending(tokenizer, declared_eos(student)))
    began = time.monotonic()
    trainer = build(pairs, training, model, sources)
    trainer.train()
    seconds = time.monotonic() - began
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    trained.gradient_checkpointing_disable()
    reference = load_model(student, next(trained.parameters()).dtype)
    rows = held_out_rows(held_out, script)
    how = HeldOut(
        rows,
        tokenizer,
        held_out.beta or training.beta,
        held_out.samples,
        held_out.max_new_tokens,
        training.seed,
        reward,
        stored if isinstance(stored := opened.get("reference"), StoreSource) else None,
    )
    outcome = measure(trained, reference, how)
    if held_out.tasks:
        outcome.benchmarks = task_means(
            trained, tokenizer, held_out.tasks,
            include=held_out.tasks_folder, limit=held_out.tasks_limit, seed=training.seed,
        )  # fmt: skip
    if given["keep_model"]:
        trainer.save_model(str(folder / "model"))
        tokenizer.save_pretrained(folder / "model")
    write_outcome(folder, {"seconds": seconds, **summary_of(outcome)}, outcome.texts)
    return 0


def held_out_rows(held_out: HeldOutFile, script: DataArguments) -> Any:
    """The held-out pairs: by default the test split of the training data. Raises InvalidRequest."""
    if held_out.dataset_name:
        rows = load_preferences(held_out.dataset_name, held_out.split, None, script.columns)
    else:
        split = held_out.split or script.dataset_test_split
        rows = load_preferences(str(script.dataset_name), split, script.dataset_config, script.columns)
    return rows if held_out.pairs is None else rows.select(range(min(held_out.pairs, len(rows))))


def _controlled(
    control: str, training: TVKDConfig, sources: dict[Role, ValueSource], tokens: Any, ending: Ending
) -> dict[Role, ValueSource]:
    """The control's sources. For the length alone, the settings become those of which S is a multiple of the length."""
    # The models were checked just now, and the control's sources are other ones, which have no server to fill.
    training.bulk = False
    training.teacher_id = training.teacher_reference_id = training.reference_id = None
    relative = is_relative(training)
    margins, mean = np.zeros(0), None
    if control == "length":
        margins, mean = _margins(training, sources, tokens, ending)
        if not relative:
            for name, value in asdict(Shaping()).items():
                setattr(training, name, value)
    return controlled(
        control, sources, TrainingPairs.of(tokens),
        relative=relative, margins=margins, mean_advantage=mean, seed=training.seed,
    )  # fmt: skip


def _margins(
    training: TVKDConfig, sources: dict[Role, ValueSource], tokens: Any, ending: Ending
) -> tuple[Float64, float | None]:
    """S(chosen) − S(rejected) of each pair, or ΣA's; and for objective token the mean of A."""
    # Potential implicit with γ = 1 makes S the sum of A.
    how = training.shaping if training.objective == "tvkd" else Shaping(potential="implicit")
    of_roles = {str(role): source for role, source in sources.items()}
    chosen, rejected = scores_of(tokens, of_roles, {"arm": how}, ending.of)["arm"]
    mean = mean_advantage(sources, tokens, training.max_length) if training.objective == "token" else None
    return chosen - rejected, mean


def _end_with_parent() -> None:
    """The study holds this process's input open; when it is gone, nobody would read the outcome."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(exit_code("tvkd study", lambda: run(Path(sys.argv[1]))))
