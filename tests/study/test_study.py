"""`tvkd study`: its file, its runs, and that one which was killed goes on and finds the same."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tvkd.cli import main as tvkd
from tvkd.study import training
from tvkd.study.command import prepare
from tvkd.study.plan import Study
from tvkd_client.prefetch import Prefetch
from tvkd_shared.errors import InvalidRequest

CHANCE = np.random.default_rng(0)


def words(count: int) -> str:
    return " ".join(f"w{word}" for word in CHANCE.integers(8, 128, count))


def pairs(count: int) -> str:
    rows = [
        {"prompt": words(4), "chosen": " " + words(2 + row % 5), "rejected": " " + words(2 + row % 3)}
        for row in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_teacher, student) -> dict:
    """Settings of a training with a teacher, what it started from, and a store of what both say of the pairs."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text(pairs(12))
    (folder / "data" / "test.jsonl").write_text(pairs(6))
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder / "before-dpo")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder / "before-dpo")
    for name in (tiny_teacher, folder / "before-dpo"):
        Prefetch(
            model=str(name), store=str(folder / "store"), dataset=str(folder / "data"), split="train",
            tokenizer=str(tiny_teacher), quiet=True,
        ).run()  # fmt: skip
    return {
        "model_name_or_path": str(student), "dataset_name": str(folder / "data"), "use_cpu": True, "bf16": False,
        "teacher": str(folder / "store"), "teacher_id": tiny_teacher.name,
        "teacher_reference": str(folder / "store"), "teacher_reference_id": "before-dpo",
        "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
    }  # fmt: skip


@pytest.fixture
def file(base, tmp_path, monkeypatch):
    """Writes a study's file and gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(**content) -> str:
        held_out = {"samples": 4, "max_new_tokens": 5}
        given = {"base": base, "arms": {"tvkd": {"alpha": 0.7}}, "seeds": [0], "held_out": held_out} | content
        Path("study.yaml").write_text(yaml.safe_dump(given))
        return "study.yaml"

    return write


def outcome(folder: Path) -> dict:
    found = json.loads((folder / "outcome.json").read_text())
    return {name: found[name] for name in ("means", "items")}


def test_dpo_and_controls_come_by_themselves_and_a_sweep_is_arms(file):
    study = Study(file(arms={"token": {"objective": "token", "sweep": {"strength": [1, 3]}}}, seeds=[0, 1]))
    assert [run.arm.name for run in study.runs[:7]] == [
        "DPO",
        *(f"token, strength={k}{control}" for k in (1, 3) for control in ("", ", shuffled", ", length")),
    ]
    assert [run.seed for run in study.runs] == [0] * 7 + [1] * 7
    assert {(settings["seed"], settings["data_seed"]) for settings in map(study.settings_of, study.runs[7:])} == {
        (1, 1)
    }
    own = Study(file(arms={"mine": {"alpha": 0.0, "beta": 0.5}, "tvkd": {"alpha": 1.0}}, controls=[]))
    assert [arm.name for arm in own.arms] == ["mine", "tvkd"], "a DPO of the user's own is the DPO"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"arms": {}}, "arms: "),
        ({"arm": {}}, "arm: Extra inputs"),
        ({"arms": {"a b": {"alpha": 1.0}, "a/b": {"alpha": 1.0}}}, "would have one folder"),
        ({"arms": {"tvkd": {"objective": "tvd"}}}, "arm tvkd: objective 'tvd'"),
        ({"arms": {"tvkd": {"seed": 3}}}, "sets seed, which the study gives"),
        ({"arms": {"tvkd": {"sweep": {"alpha": 1}}}}, "sweep is one setting and a list"),
        ({"arms": {"tvkd": {"learning_rat": 1.0}}}, "unknown settings: --learning_rat"),
        ({"seeds": [1, 1]}, "a seed is named twice"),
        ({"controls": ["random"]}, "controls.0"),
        ({"arms": {"tvkd": {"teacher_id": "another"}}}, "arm tvkd: teacher: store "),
        ({"outcome": "reward"}, "outcome reward is not measured; held_out has reward_accuracy, "),
        ({"outcome": "kl", "held_out": {"samples": 0}}, "outcome kl is not measured"),
        ({"held_out": {"tasks": ["no_such_task"]}}, "has no task no_such_task"),
        ({"held_out": {"split": "validation"}}, "Unknown split"),
        ({"held_out": {"reward": "nothing:here"}}, "nothing:here cannot be read"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_a_line_before_anything_is_trained(file, content, said, capsys):
    assert tvkd(["study", file(**content)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("study-output").exists()


def test_controls_of_an_advantage_need_what_it_is_taken_against(file, base):
    without = {name: value for name, value in base.items() if not name.startswith("teacher_reference")}
    arms = {"token": {"objective": "token"}}
    with pytest.raises(InvalidRequest, match="set teacher_reference"):
        Study(file(base=without, arms=arms))
    assert len(Study(file(base=without, arms=arms, controls=[])).arms) == 2


def test_every_kind_of_arm_and_control_trains_and_differs_from_its_arm(file):
    arms = {
        "tvkd": {"alpha": 0.7, "gamma": 0.9, "terminal": "zero"},
        "token": {"objective": "token"},
        "soft-label": {"objective": "soft-label"},
    }
    study, found = Study(file(arms=arms)), {}
    for run in study.runs:
        prepare(study, run)
        assert training.run(run.folder) == 0
        found[run.arm.name] = outcome(run.folder)["items"]["reward_margin"]
    assert len({tuple(margins) for margins in found.values()}) == len(found) == 10
    assert tvkd(["study", "study.yaml", "--report"]) == 0
    lines = list(map(json.loads, Path("study-output/results.jsonl").read_text().splitlines()))
    assert [line["arm"] for line in lines] == [arm.name for arm in study.arms]
    table = Path("study-output/table.md").read_text()
    assert "| soft-label, length |" in table and "**tvkd**: One seed says nothing of chance" in table


def test_a_study_that_was_killed_goes_on_and_finds_the_same(file, capsys):
    path = file()
    study = Study(path)
    process = subprocess.Popen([sys.executable, "-m", "tvkd.cli", "study", path], start_new_session=True)
    done = study.runs[0].folder / "outcome.json"
    under_way = study.runs[1].folder / "log.txt"
    while not (done.exists() and under_way.exists()):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    made = done.stat().st_mtime_ns
    while str(study.runs[1].folder) in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        time.sleep(0.05)  # the run under way ends with its study, and so does not write beside the next one
    assert not (study.runs[1].folder / "outcome.json").exists()
    assert tvkd(["study", path, "--jobs", "2"]) == 0
    assert done.stat().st_mtime_ns == made, "a run that had ended was run again"
    assert "4 of 4" in capsys.readouterr().out
    found = [outcome(run.folder) for run in study.runs]
    for run, before in zip(study.runs[1:], found[1:], strict=True):
        prepare(study, run)
        training.run(run.folder)
        assert outcome(run.folder) == before
    file(arms={"tvkd": {"alpha": 0.5}})
    assert tvkd(["study", path]) == 2
    assert "has the outcome of other settings than study.yaml now has" in capsys.readouterr().err


def test_a_run_that_fails_costs_the_others_nothing_and_is_run_again(file, capsys):
    path = file(arms={"bad": {"max_length": 1}}, controls=[])
    assert tvkd(["study", path]) == 1
    said = capsys.readouterr()
    assert "DPO, seed 0: reward_accuracy" in said.out and "bad, seed 0: failed; " in said.out
    assert "1 of 2 runs failed; the first: tvkd study: " in said.err


def test_the_page_shows_data_as_text_and_runs_no_script(file, monkeypatch):
    path = file(held_out={"samples": 2, "max_new_tokens": 2, "reward": "my_reward:none"}, controls=[])
    Path("my_reward.py").write_text("def none(prompts, completions):\n    return [0.0] * len(prompts)\n")
    study = Study(path)
    for run in study.runs:
        prepare(study, run)
        training.run(run.folder)
        hostile = {"prompt": "<script>alert(1)</script>", "completion": "<img src=x onerror=alert(1)>", "kl": 0.0}
        (run.folder / "samples.jsonl").write_text(json.dumps(hostile) + "\n")
    assert tvkd(["study", path, "--report"]) == 0
    page = Path("study-output/report.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    names = ("http://www.w3.org/", "http://purl.org/", "http://creativecommons.org/")  # of XML, which nobody loads
    assert all(link.startswith(names) for link in re.findall(r"https?://[^\s\"<]+", page))
    assert page.count("<svg") >= 1
