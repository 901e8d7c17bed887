"""Families that differ in how their language model is found and run; `make families` has all of them."""

import json

import pytest

from families import PAGE, QUESTIONS, save_tiny, worst_error, write_into_page
from small_models import ask, load

FAMILIES = ("deepseek_v3", "falcon_h1", "gemma3", "gemma4", "llama4", "llama4_text", "mistral3", "mllama", "moshi",
            "qwen2_5_vl", "qwen3_5", "smolvlm")  # fmt: skip
"""Checkpoints that read images, in several layouts, and text models whose parts have unusual names."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_values_of_its_own_class(family, tmp_path):
    directory = save_tiny(family, tmp_path / family)
    assert worst_error(directory, ask(load(directory), *QUESTIONS)) < 1e-4


def test_a_window_that_the_cache_knows_nothing_of_is_kept_beyond_the_tokens_that_the_start_reads(tmp_path):
    directory = save_tiny("moshi", tmp_path / "moshi")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"sliding_window": 40}))
    assert worst_error(directory, ask(load(directory), *QUESTIONS)) < 1e-4


def test_an_outcome_is_written_into_its_cell_of_the_page_and_all_else_stays(tmp_path):
    page, before = tmp_path / "page.md", PAGE.read_text()
    page.write_text(before)
    write_into_page(page, "llama", "vllm", "9e-09")
    row = next(line for line in before.splitlines() if line.startswith("| `llama` |"))
    after = before.replace(row, " | ".join([*row.split(" | ")[:2], "9e-09 |"]))
    assert page.read_text() == after != before
    write_into_page(page, "llama9", "transformers", "refused: no")
    assert (
        page.read_text().count("\n") == after.count("\n") + 1 and "| `llama9` | refused: no |  |\n" in page.read_text()
    )
