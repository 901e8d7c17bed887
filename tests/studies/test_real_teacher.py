"""The study on a real teacher: its pairs and its file. Its models take hours, and `make study-real` makes them."""

import json
from pathlib import Path

from studies.real_teacher.__main__ import SIZES, write_data, write_study
from tvkd.study.plan import Study


def test_the_students_see_the_first_pairs_of_the_training_split_and_never_one_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = write_data()
    assert not {row["prompt"] for row in splits["train"]} & {row["prompt"] for row in splits["test"]}
    for size in SIZES:
        lines = Path(f"data-{size}/train.jsonl").read_text().splitlines()
        assert list(map(json.loads, lines)) == splits["train"][:size]
        assert Path(f"data-{size}/test.jsonl").read_text() == Path("data/test.jsonl").read_text()


def test_its_file_is_a_study_of_every_objective_with_dpo_and_controls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(write_study(100, "mild", quick=False))
    own = ["tvkd", "token", "token, centred", "soft-label"]
    assert [arm.name for arm in study.arms if not arm.control] == ["DPO", *own]
    assert {arm.control for arm in study.arms} == {None, "shuffled", "length"}
    assert len(study.runs) == 13 * 3
