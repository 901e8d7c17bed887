"""Pairs for the tiny student, values for them, and a trainer of it."""

import json

import pytest
import yaml
from datasets import Dataset
from runs import SMALL, moved_model, rows, trainer_of
from teacher_source import TeacherSource

CONFIG = SMALL | {"alpha": 0.7, "gamma": 0.9, "terminal": "zero", "max_steps": -1, "num_train_epochs": 1}


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(rows(8))


@pytest.fixture
def source(tiny_teacher) -> TeacherSource:
    return TeacherSource(tiny_teacher, (1.0, 2.0))


@pytest.fixture(scope="session")
def started(tiny_teacher, tmp_path_factory):
    """T0: what the teacher started from."""
    return moved_model(tiny_teacher, tmp_path_factory.mktemp("started") / "t0")


@pytest.fixture(scope="session")
def _roles(tiny_teacher, started, student):
    return {
        "teacher": TeacherSource(tiny_teacher, (1.0, 2.0), "T"),
        "teacher_reference": TeacherSource(started, teacher_id="T0"),
        "reference": TeacherSource(student, teacher_id="S0"),
    }


@pytest.fixture
def roles(_roles):
    """A source of each role."""
    return dict(_roles)


@pytest.fixture
def make_trainer(student, pairs, tmp_path):
    """A TVKDTrainer of the tiny student; settings by name, those of SMALL by default."""

    def make(*, train_dataset=None, model=None, source=None, sources=None, **settings):
        sources = ({"teacher": source} if source else {}) | (sources or {})
        output = settings.pop("output_dir", tmp_path / "out")
        data = pairs if train_dataset is None else train_dataset
        return trainer_of(model or student, output, data, sources=sources, **settings)

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
