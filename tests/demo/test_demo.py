"""`tvkd demo` itself, on a few of its pairs."""

import json
import os
import subprocess
import sys

import pytest

from tvkd.cli import main as tvkd
from tvkd.demo import arms
from tvkd.demo.run import write_data
from tvkd.study.plan import Study
from tvkd_shared.errors import InvalidRequest
from watch import Watch

pytestmark = pytest.mark.timeout(900)

# Two runs of seven: each is a process of its own, which takes long to start.
TWO_RUNS = """
from tvkd.cli import main
from tvkd.demo import arms
arms.ARMS, arms.CONTROLS = {"token": arms.ARMS["token"]}, []
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    output, watch = folder / "output", Watch(folder / "watch")
    command = [sys.executable, "-c", TWO_RUNS, "demo", "--output", output, "--pairs", "40", "--steps", "1"]
    environment = os.environ | watch.environment | {"COLUMNS": "200"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, output, watch


@pytest.mark.real
def test_every_pair_is_stored_and_asked_again_the_teacher_does_not_run(demo):
    _, output, _ = demo
    summary = json.loads((output / "summary.json").read_text())
    assert summary["sequences"] == summary["fills"][0]["computed_completions"] == 80
    assert summary["fills"][1]["computed_completions"] == summary["fills"][1]["teacher_tokens"] == 0
    assert summary["bytes_sealed"] < summary["bytes_alternatives"]["top_50_json_lines"] / 10


@pytest.mark.real
def test_margins_are_shown_before_training_and_students_after_it(demo):
    printed, output, _ = demo
    order = ("tvkd prefetch of 40 pairs", "Cross-entropy on ", "soft value, γ 1, sum", "2 of 2  ")
    places = [printed.index(text) for text in order]
    assert places == sorted(places)
    runs = [json.loads(line) for line in (output / "study/results.jsonl").read_text().splitlines()]
    assert [run["arm"] for run in runs] == ["DPO", "token"]
    assert "One seed says nothing of chance" in printed


@pytest.mark.real
def test_server_and_trainer_of_the_demo_call_nobody_outside(demo):
    _, _, watch = demo
    assert watch.called() and watch.strangers() == []


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    monkeypatch.setattr("os.environ", {})
    assert tvkd(["demo", "--output", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_every_objective_stands_beside_dpo_and_its_own_shuffle(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(arms.study_file(tmp_path, tmp_path / "student", "teacher", steps=1, seeds=2))
    names = [run.arm.name for run in Study(str(file)).runs]
    objectives = ("tvkd", "token", "soft-label")
    assert names == 2 * ["DPO", *(name for one in objectives for name in (one, f"{one}, shuffled"))]


def test_pairs_without_a_held_out_one_are_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="of 1 pairs 1 are for training and 0 are held out; take more"):
        write_data(tmp_path / "data", 1)


@pytest.mark.parametrize("flags", [["--steps", "-1"], ["--seeds", "0"], ["--engine", "wrong"], ["--unknown"]])
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, capsys):
    try:
        code = tvkd(["demo", *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert flags[0].lstrip("-") in capsys.readouterr().err
