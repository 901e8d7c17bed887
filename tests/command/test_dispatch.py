"""How any command starts and ends."""

import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from tvkd.cli import main as tvkd
from tvkd.store.command import Info
from tvkd_client.training_settings import DataSettings, TrainingSettings
from tvkd_shared.settings import from_command_line


def test_ctrl_c_while_a_command_is_imported_is_exit_code_130(capsys, monkeypatch):
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    assert tvkd(["prefetch"]) == 130
    assert capsys.readouterr().err == ""


def test_help_loads_neither_settings_nor_an_engine():
    """They take most of a second to load, and more with a trainer or an engine."""
    heavy = ("numpy", "pydantic", "pydantic_settings", "torch", "transformers", "trl", "fastapi")
    code = (
        "import sys; from tvkd.cli import main; code = main(['--help']); "
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and "prefetch" in done.stdout


@pytest.mark.parametrize("command", ["show", "preview", "prefetch", "train", "serve", "eval", "study", "store", "demo"])
def test_the_help_of_a_command_loads_neither_a_trainer_nor_an_engine(command):
    code = (
        f"import sys; from tvkd.cli import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and f"usage: tvkd {command}" in done.stdout


@pytest.mark.parametrize("argv", [["train", "--example"], ["--help"], ["--version"]])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(argv):
    code = f"import sys; from tvkd.cli import main; sys.exit(main({argv}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.close()
        assert (command.stderr.read(), command.wait(60)) == (b"", 141)


def test_the_help_of_training_has_every_setting_of_tvkd_first(capsys):
    assert tvkd(["train", "--config", "file", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in (*fields(TrainingSettings), *fields(DataSettings)):
        assert f"{field.name}" in shown


def test_the_example_is_printed(capsys):
    assert tvkd(["train", "--example"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["objective"] == "tvkd"


def test_a_variable_without_the_prefix_is_no_setting(monkeypatch):
    monkeypatch.setenv("JSON", "true")
    assert from_command_line(Info, ["--store", "values"]).json_ is False
