"""A source that fails under any role: training stops or waits with a clear line, and no step used a wrong number."""

import time

import numpy as np
import pytest
import torch
from runs import assert_same_run, train
from teacher_source import TeacherSource

from tvkd_shared.errors import TeacherUnavailable, TVKDError
from tvkd_shared.record import Record

ROLES = ("teacher", "teacher_reference", "reference")


class Faulty(TeacherSource):
    """Answers well twice, and then as `fault` says."""

    def __init__(self, directory, name: str, fault=None) -> None:
        super().__init__(directory)
        self.teacher_id = name
        self.fault = fault
        self.calls = 0

    def fetch(self, prompts, completions) -> list[Record]:
        self.calls += 1
        records = super().fetch(prompts, completions)
        return records if self.fault is None or self.calls < 3 else self.fault(records)


def longer(records):
    numbers = records[0].numbers
    return [Record(records[0].columns, np.concatenate([numbers[:1], numbers])), *records[1:]]


def not_finite(records):
    numbers = records[0].numbers.copy()
    numbers[0] = np.nan
    return [Record(records[0].columns, numbers), *records[1:]]


def reset(records):
    raise TeacherUnavailable("cannot reach http://teacher.test: Connection reset by peer")


def stalled(records):
    time.sleep(0.3)
    return records


@pytest.fixture
def sources(tiny_teacher, student, tmp_path):
    """A source for each role, the one that is named with a fault. T0 is the student's folder under another name."""

    def of(role=None, fault=None):
        folders = {"teacher": tiny_teacher, "teacher_reference": student, "reference": student}
        return {
            name: Faulty(folder, f"the {name}", fault if name == role else None) for name, folder in folders.items()
        }

    return of


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("fault", "error", "line"),
    [
        (longer, TVKDError, "values of"),
        (lambda records: records[:-1], TVKDError, "records for"),
        (lambda records: records[::-1], TVKDError, "values of"),
        (not_finite, ValueError, "not all finite"),
        (reset, TeacherUnavailable, "Connection reset"),
    ],
    ids=["longer", "fewer", "swapped", "nan", "reset"],
)
def test_a_fault_stops_the_run_before_its_numbers_are_used(make_trainer, sources, role, fault, error, line):
    trainer = make_trainer(objective="token", sources=sources(role, fault), max_steps=4)
    weights = {}
    step = trainer.training_step

    def kept(*args, **kwargs):
        loss = step(*args, **kwargs)
        weights["last"] = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        assert torch.isfinite(loss)
        return loss

    trainer.training_step = kept
    with pytest.raises(error, match=line):
        trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    assert trainer.state.global_step <= 2


@pytest.mark.parametrize("role", ROLES)
def test_a_stall_changes_no_number(make_trainer, sources, role):
    calm, slow = (train(make_trainer(objective="token", sources=sources(*of))) for of in ((), (role, stalled)))
    assert_same_run(calm, slow)
