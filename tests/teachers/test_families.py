"""Families that differ in how their language model is found and run; `make families` has all of them."""

import json

import pytest

from families import QUESTIONS, save_tiny, worst_error
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
