"""A server that does not answer is known before TRL is imported, and only where the training would read it."""

import subprocess
import sys

import pytest

from tvkd_client.train_command import servers

NOWHERE = "http://127.0.0.1:1"

WITHOUT_TRL = """
import sys
sys.modules["trl"] = sys.modules["torch"] = None
from tvkd.cli import main
main(["train", "--config", sys.argv[1], "--teacher", "http://127.0.0.1:1"])
"""


def test_a_wrong_port_is_said_before_trl_is_imported(config):
    process = subprocess.Popen([sys.executable, "-c", WITHOUT_TRL, config()], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr.readline().startswith(f"{NOWHERE}: ")
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
