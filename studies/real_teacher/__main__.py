"""A real teacher pair, its values, and the study of students beside it. See docs/study.md.

python -m studies.real_teacher              everything: minutes on a GPU with --jobs 8, many hours on a CPU
python -m studies.real_teacher --pairs 100 --teacher mild    one of its studies
python -m studies.real_teacher --quick      steps of each kind in minutes: it shows that the parts fit, no result

It goes on where it was stopped.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from studies.real_teacher.ceiling import ceiling
from tvkd.cli import main as tvkd
from tvkd.demo.pairs import demo_pairs
from tvkd.demo.teacher import teacher_directory
from tvkd_client.prefetch import Prefetch

SIZES, QUICK = (100, 700), 16
STEPS = {100: 40, 700: 90, QUICK: 2}
"""Steps of 8 pairs of each student, by the number of its pairs."""

SFT_STEPS = 100
TEACHERS: dict[str, dict[str, Any]] = {
    "mild": {"beta": 0.3, "learning_rate": 5e-6, "max_steps": 110},
    "hard": {"beta": 0.1, "learning_rate": 2e-5, "max_steps": 160},
}
"""How DPO made each teacher. The hard one is surer of its preferences, and a worse language model."""

TRAINING: dict[str, Any] = {
    "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "logging_steps": 10,
    "per_device_train_batch_size": 8,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("study-output/real-teacher"))
    parser.add_argument(
        "--pairs", type=int, choices=SIZES, help="pairs of the students; by default one after the other"
    )
    parser.add_argument("--teacher", choices=TEACHERS, help="by default one after the other")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    output = asked.output / "quick" if asked.quick else asked.output
    output.mkdir(parents=True, exist_ok=True)
    with _inside(output):
        sizes = [QUICK] if asked.quick else [asked.pairs] if asked.pairs else SIZES
        for teacher in [asked.teacher] if asked.teacher else ["mild"] if asked.quick else TEACHERS:
            make_models(teacher, quick=asked.quick)
            for pairs in sizes:
                study = write_study(pairs, teacher, quick=asked.quick)
                if code := tvkd(["study", study, "--jobs", str(asked.jobs)]):
                    return code
                print(ceiling(study))
    return 0


def write_study(pairs: int, teacher: str, *, quick: bool) -> str:
    """The study's file for so many pairs and a teacher, in the present folder."""
    study = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text())
    study["base"] |= {
        "dataset_name": f"data-{pairs}", "max_steps": STEPS[pairs], "teacher_id": f"T1-{teacher}",
        "reference_id": Path("models/S0").resolve().name,
    }  # fmt: skip
    study["output"] = f"{teacher}-{pairs}"
    if quick:
        study |= {"seeds": [0], "held_out": study["held_out"] | {"pairs": 8, "samples": 2}}
        study["arms"] = {"token": study["arms"]["token"]}
    path = Path(f"{teacher}-{pairs}.yaml")
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


def make_models(teacher: str, *, quick: bool) -> None:
    """S0, T0 and T1, the pairs, and the values of all three, in the present folder; what is there is kept.

    S0  SmolLM2-135M-Instruct, the student before its training
    T0  S0 after SFT on the chosen definitions of the training split
    T1  T0 after DPO on all pairs of that split, mild or hard
    """
    splits = write_data()
    models = Path("models")
    models.mkdir(exist_ok=True)
    if not (models / "S0").exists():
        (models / "S0").symlink_to(teacher_directory())
    tokenizer = AutoTokenizer.from_pretrained(models / "S0")
    train = Dataset.from_list(splits["train"][: QUICK if quick else None])
    if not (models / "T0").exists():
        rows = train.rename_column("chosen", "completion").remove_columns("rejected")
        args = SFTConfig(
            "T0.making", **TRAINING, max_steps=2 if quick else SFT_STEPS, learning_rate=2e-5, completion_only_loss=True
        )
        _keep(SFTTrainer(str(models / "S0"), args=args, train_dataset=rows, processing_class=tokenizer), models / "T0")
    t1 = models / f"T1-{teacher}"
    if not t1.exists():
        how = TEACHERS[teacher] | ({"max_steps": 2} if quick else {})
        args = DPOConfig("T1.making", **TRAINING, **how, precompute_ref_log_probs=True)
        _keep(DPOTrainer(str(models / "T0"), args=args, train_dataset=train, processing_class=tokenizer), t1)
    for name in (t1.name, "T0", "S0"):
        # A store that has all of it is read in seconds.
        Prefetch(
            model=str(models / name), store="values", dataset=f"data-{QUICK}" if quick else "data", split="train",
            tokenizer=str(models / "S0"), quiet=True,
        ).run()  # fmt: skip


def write_data() -> dict[str, list[dict[str, str]]]:
    """The demo's pairs as folders of a train and a test split: all, and the first of the training ones."""
    names = ("prompt", "chosen", "rejected")
    splits = {
        split: [{name: getattr(pair, name) for name in names} for pair in demo_pairs() if pair.split == of]
        for split, of in (("train", "train"), ("test", "heldout"))
    }
    for folder, count in (("data", None), *((f"data-{size}", size) for size in (QUICK, *SIZES))):
        Path(folder).mkdir(exist_ok=True)
        for split, rows in splits.items():
            some = rows if split == "test" else rows[:count]
            Path(folder, f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return splits


def _keep(trainer: Any, folder: Path) -> None:
    """Train, and save whole or not at all."""
    trainer.train()
    making = folder.with_suffix(".making")
    trainer.save_model(str(making))
    making.rename(folder)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The study's files name places beside them. Runs are started from here too."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.exit(main())
