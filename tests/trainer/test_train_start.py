"""A server that does not answer is known before TRL is imported, and only where the training would read it.

Other commands that import TRL say a first word before it too.
"""

import subprocess
import sys

import pytest

from tvkd_client.train_command import servers

NOWHERE = "http://127.0.0.1:1"

WITHOUT_TRL = """
import sys
sys.modules["trl"] = sys.modules["torch"] = sys.modules["datasets"] = None
from tvkd.cli import main
main(sys.argv[1:])
"""
PAIRS = ["--dataset", "pairs.jsonl", "--tokenizer", "student"]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["train", "--config", "FILE", "--teacher", NOWHERE], f"{NOWHERE}: "),
        (["prefetch", "--config", "FILE"], f"{NOWHERE}: "),
        (["prefetch", "--server", NOWHERE, *PAIRS], f"{NOWHERE}: "),
        (["show", "--server", NOWHERE, *PAIRS], f"{NOWHERE}: "),
        (["prefetch", "--model", "teacher", "--store", "values", *PAIRS], "tvkd prefetch: reading pairs.jsonl"),
    ],
    ids=lambda given: " ".join(given[:2]) if isinstance(given, list) else "",
)
def test_a_first_word_comes_before_trl_is_imported(config, command, word):
    argv = [config(teacher=NOWHERE) if part == "FILE" else part for part in command]
    process = subprocess.Popen([sys.executable, "-c", WITHOUT_TRL, *argv], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline().startswith(word)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("settings", "flags", "asked"),
    [
        ({"teacher": NOWHERE}, [], ["teacher"]),
        ({}, ["--teacher", NOWHERE], ["teacher"]),
        ({}, [f"--teacher={NOWHERE}", "--teacher-reference", NOWHERE], ["teacher"]),
        ({"teacher": NOWHERE, "teacher_reference": NOWHERE, "objective": "token"}, [],
         ["teacher", "teacher_reference"]),
        ({"teacher": NOWHERE, "teacher_reference": NOWHERE}, ["--potential", "implicit"],
         ["teacher", "teacher_reference"]),
        ({"teacher": NOWHERE, "alpha": 0}, [], []),
        ({"teacher": NOWHERE, "reference": NOWHERE}, ["--alpha", "0"], ["reference"]),
        ({"teacher": "/a/store"}, [], []),
        ({"teacher": NOWHERE}, ["--alpha", "many"], []),
        ({"teacher": NOWHERE, "potential": "q"}, [], []),
        ({"teacher": 8077}, [], []),
    ],
)  # fmt: skip
def test_those_servers_are_asked_that_the_training_reads(config, settings, flags, asked):
    named = list(servers(["--config", config(**settings), "--max_steps", "3", *flags]))
    assert named == [(role, NOWHERE) for role in asked]


@pytest.mark.parametrize("argv", [["--config"], ["--config", "/none"], ["--help-trl"], []])
def test_what_is_not_understood_is_left_to_trl_s_parser(argv):
    assert list(servers(argv)) == []
