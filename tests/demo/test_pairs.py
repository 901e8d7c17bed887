"""The shipped preference pairs, and the script that makes them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tvkd.demo.pairs import demo_pairs, pairs_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "wordnet_pairs.py"
EXCERPT = Path(__file__).parent / "wordnet_excerpt"


@pytest.fixture(scope="module")
def pairs():
    return demo_pairs()


@pytest.fixture(scope="module")
def excerpt_pairs():
    return runpy.run_path(str(SCRIPT))["pairs"](EXCERPT, 1000)


def test_a_thousand_pairs_are_shipped_a_fifth_of_them_held_out(pairs):
    assert len(pairs) == 1000
    assert 150 < sum(pair.split == "heldout" for pair in pairs) < 250
    assert {pair.split for pair in pairs} == {"train", "heldout"}


def test_half_of_the_pairs_are_of_each_kind(pairs):
    assert 400 < sum(pair.kind == "swap" for pair in pairs) < 600
    assert {pair.kind for pair in pairs} == {"swap", "gloss"}


def test_no_prompt_and_no_text_occurs_twice(pairs):
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(texts)) == len(texts)


def test_a_swap_holds_the_words_of_its_gloss_in_another_order(pairs):
    for pair in pairs:
        assert pair.chosen != pair.rejected
        same_words = sorted(pair.chosen.split()) == sorted(pair.rejected.split())
        assert same_words == (pair.kind == "swap")


def test_a_rejected_gloss_differs_by_at_most_one_word_in_length(pairs):
    assert all(abs(len(pair.chosen.split()) - len(pair.rejected.split())) <= 1 for pair in pairs)


def test_the_licence_lies_beside_the_data():
    licence = pairs_file().with_name("WORDNET-LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "Permission to use, copy, modify and distribute" in licence


def test_the_script_makes_the_same_file_twice(tmp_path, excerpt_pairs):
    written = []
    for name in ("first", "second"):
        output = tmp_path / name
        subprocess.run([sys.executable, SCRIPT, EXCERPT, "--output", output], check=True)
        written.append(output.read_bytes())
    assert written[0] == written[1]
    assert [json.loads(line) for line in written[0].splitlines()] == excerpt_pairs


def test_a_pair_of_the_excerpt_is_made_as_the_shipped_one(pairs, excerpt_pairs):
    shipped = {pair.prompt: pair._asdict() for pair in pairs if pair.kind == "swap"}
    swaps = [pair for pair in excerpt_pairs if pair["kind"] == "swap" and pair["prompt"] in shipped]
    assert swaps
    assert all(shipped[pair["prompt"]] == pair for pair in swaps)


def test_only_the_most_frequent_sense_of_a_word_is_used(excerpt_pairs):
    texts = {pair[column] for pair in excerpt_pairs for column in ("chosen", "rejected")}
    assert (EXCERPT / "data.verb").read_text().count(
        "| travel along a certain course"
    ) == 1  # a later sense of "follow"
    assert "travel along a certain course" not in texts
