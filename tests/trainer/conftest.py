"""Pairs for the tiny student, values for them, and a trainer of it."""

import pytest
from datasets import Dataset
from runs import SMALL, rows
from teacher_source import TeacherSource

from tvkd_client import TVKDConfig, TVKDTrainer


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
