"""The tables print the summary's numbers, and the summary is valid JSON."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from tvkd.demo.report import Fill, Summary, show
from tvkd.demo.training import HeldOut
from tvkd_client.margins import statistics_of
from tvkd_shared.shaping import Shaping

ONE, OTHER = np.array([3.0, 1.0, 2.0, 1.0, -1.0]), np.array([1.0, 2.0, -1.0, -3.0, -1.0])
LENGTHS = np.array([-2.0, 1.0, 0.0, 3.0, 1.0])

SUMMARY = Summary(
    teacher_id="ab" * 16, teacher_name="tiny", pairs=100, sequences=200, tokens=1500,
    bytes_recent=40.0, bytes_sealed=20.0,
    bytes_alternatives={"top_50_json_lines": 1400.0, "full_bf16_logits": 98304.0},
    fills=(Fill(60.0, 200, 3100), Fill(1.5, 0, 0)),
    readings={"one": statistics_of(ONE, LENGTHS, ONE), "other": statistics_of(OTHER, np.zeros(5), ONE)},
    shaping=Shaping(gamma=0.0, potential="entropy", aggregate="mean"), alpha=1.7, train_pairs=80, heldout_pairs=20,
    heldout={"DPO": HeldOut(0.65, 0.05, 0.1, 0.68)}, seconds={"teacher": 20.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def printed():
    console = Console(file=io.StringIO(), width=120)
    show(SUMMARY, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "row",
    [
        "│ 20.0 │ 1.0 ×", "│ 1,400 │ 70.0 ×", "│ 98,304 │ 4,915.2 ×", "│ first │ 60.0 │ 200 │ 3,100 │",
        "│ second │ 1.5 │ 0 │ 0 │", "│ one │ 80% │ -0.61 │", "│ other │ 40% │ – │",
        "│ DPO │ 65.0% ± 5.0% │ +0.100 │ 0.6800 │",
    ],
)  # fmt: skip
def test_a_table_row_holds_the_summarys_numbers(printed, row):
    assert row in " ".join(printed.split())


def test_what_a_toy_run_cannot_show_is_said(printed):
    text = " ".join(printed.split())
    assert "proves the plumbing, not the paper" in text
    assert "α 1.7" in text and "γ 0" in text and "terminal state" in text


def test_the_summary_is_json_that_any_reader_takes(tmp_path):
    SUMMARY.write(tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read["fills"][1]["teacher_tokens"] == 0
    assert read["readings"]["other"]["length_correlation"] is None
