"""The demo's study: DPO and three objectives that read the teacher, each beside its shuffled control."""

from pathlib import Path
from typing import Any

import yaml

ARMS: dict[str, dict[str, Any]] = {
    "tvkd": {"objective": "tvkd", "alpha": 0.7},
    "token": {"objective": "token"},
    "soft-label": {"objective": "soft-label"},
}

CONTROLS = ["shuffled"]

BASE = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "beta": 0.1,
    "max_length": 256,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


def study_file(output: Path, student: Path, teacher: str, *, steps: int, seeds: int) -> str:
    """The study's YAML file. The output folder has the pairs and the store; teacher is its name there."""
    store = str(output / "store")
    roles = {"teacher": store, "teacher_id": teacher, "reference": store, "reference_id": student.name}
    own = {"model_name_or_path": str(student), "dataset_name": str(output / "data"), "max_steps": steps}
    content = {
        "base": {**own, **roles, **BASE},
        "arms": ARMS,
        "seeds": list(range(seeds)),
        "controls": CONTROLS,
        "held_out": {"samples": 0},
        "output": str(output / "study"),
    }
    return str(yaml.safe_dump(content, sort_keys=False))
