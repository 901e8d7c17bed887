"""How any command starts and ends."""

import subprocess
import sys

from tvkd.cli import main as tvkd
from tvkd.store.command import Info
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


def test_a_variable_without_the_prefix_is_no_setting(monkeypatch):
    monkeypatch.setenv("JSON", "true")
    assert from_command_line(Info, ["--store", "values"]).json_ is False
