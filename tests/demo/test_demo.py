"""`tvkd demo` itself, on a few of its pairs."""

import json
import os
import subprocess
import sys

import pytest

from tvkd.cli import main as tvkd
from watch import Watch


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    output, watch = folder / "output", Watch(folder / "watch")
    command = [sys.executable, "-m", "tvkd.cli", "demo", "--output", output, "--pairs", "40", "--steps", "1"]
    done = subprocess.run(command, env=os.environ | watch.environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "summary.json").read_text()), watch


@pytest.mark.real
def test_every_pair_is_stored_and_asked_again_the_teacher_does_not_run(demo):
    _, summary, _ = demo
    assert summary["sequences"] == summary["fills"][0]["computed_completions"] == 80
    assert summary["fills"][1]["computed_completions"] == summary["fills"][1]["teacher_tokens"] == 0


@pytest.mark.real
def test_three_students_are_compared_and_the_store_is_smaller_than_any_logits(demo):
    printed, summary, _ = demo
    assert list(summary["heldout"]) == ["DPO", "TVKD", "TVKD, ψ shuffled"]
    assert summary["bytes_sealed"] < summary["bytes_alternatives"]["top_50_json_lines"] / 10
    assert "proves the plumbing" in " ".join(printed.split())


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


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--gamma", "-1"], ["--potential", "wrong"], ["--unknown"]])
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, capsys):
    try:
        code = tvkd(["demo", *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert flags[0].lstrip("-") in capsys.readouterr().err
