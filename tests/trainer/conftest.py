"""Pairs for the tiny student, values for them, and a trainer of it."""

import json

import pytest
import yaml
from datasets import Dataset
from runs import SMALL, rows
from teacher_source import TeacherSource

from tvkd_client import TVKDConfig, TVKDTrainer

CONFIG = SMALL | {"alpha": 0.7, "gamma": 0.9, "terminal": "zero", "max_steps": -1, "num_train_epochs": 1}


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(rows(8))


@pytest.fixture
def source(tiny_teacher) -> TeacherSource:
    return TeacherSource(tiny_teacher, (1.0, 2.0))


@pytest.fixture
def make_trainer(student, pairs, tmp_path):
    """A TVKDTrainer of the tiny student; settings by name, those of SMALL by default."""

    def make(*, train_dataset=None, trainer=TVKDTrainer, config=TVKDConfig, model=None, **settings):
        sources = settings.pop("sources", {})
        if source := settings.pop("source", None):
            sources = {"teacher": source} | sources
        extra = {"sources": sources} if issubclass(trainer, TVKDTrainer) else {}
        dpo = {name: settings.pop(name) for name in ("eval_dataset", "peft_config") if name in settings}
        return trainer(
            str(model or student),
            args=config(str(settings.pop("output_dir", tmp_path / "out")), **{**SMALL, **settings}),
            train_dataset=pairs if train_dataset is None else train_dataset,
            **dpo,
            **extra,
        )

    return make


@pytest.fixture
def config(student, tmp_path):
    """Writes a YAML file of CONFIG and more, and gives its path."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(8)))

    def write(**settings) -> str:
        output = {"model_name_or_path": str(student), "dataset_name": str(data), "output_dir": str(tmp_path / "out")}
        path = tmp_path / f"{len(list(tmp_path.glob('*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(CONFIG | output | settings))
        return str(path)

    return write
