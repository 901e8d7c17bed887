"""The tables print the summary's numbers, and the summary is valid JSON."""

import io
import json

import pytest
from rich.console import Console

from tvkd.demo.report import Fill, Summary, bytes_table, cross_entropy_table, fills_table

SUMMARY = Summary(
    teacher_id="ab" * 16, teacher_name="tiny", pairs=100, sequences=200, tokens=1500,
    bytes_recent=40.0, bytes_sealed=20.0,
    bytes_alternatives={"top_50_json_lines": 1400.0, "full_bf16_logits": 98304.0},
    fills=(Fill(60.0, 200, 3100), Fill(1.5, 0, 0)), heldout_pairs=20,
    heldout_cross_entropy={
        "teacher": {"chosen": 5.251, "rejected": 6.43}, "student": {"chosen": 6.0, "rejected": 6.5}
    },
    seconds={"teacher": 20.0},
)  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        "│ 20.0 │ 1.0 ×", "│ 1,400 │ 70.0 ×", "│ 98,304 │ 4,915.2 ×", "│ first │ 60.0 │ 200 │ 3,100 │",
        "│ second │ 1.5 │ 0 │ 0 │", "│ teacher │ 5.25 │ 6.43 │",
    ],
)  # fmt: skip
def test_a_table_row_holds_the_summarys_numbers(row):
    console = Console(file=io.StringIO(), width=120)
    console.print(*(table(SUMMARY) for table in (bytes_table, fills_table, cross_entropy_table)))
    assert row in " ".join(console.file.getvalue().split())


def test_the_summary_is_json_that_any_reader_takes(tmp_path):
    SUMMARY.write(tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read["fills"][1]["teacher_tokens"] == 0
