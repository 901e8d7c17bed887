"""What the program has: flags, variables, port, paths, metrics. deploy/ may name nothing else."""

import contextlib
import io
import os
import re
from functools import cache
from pathlib import Path
from unittest.mock import patch

from pydantic_settings import BaseSettings

from command_flags import flags_of
from tvkd.cli import COMMANDS
from tvkd.store.command import ACTIONS
from tvkd_server import routes
from tvkd_server.metrics import Metrics
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.vllm_engine.arguments import refuse_what_changes_values
from tvkd_shared.errors import BY_CODE, InvalidRequest
from tvkd_shared.settings import from_command_line

ROOT = Path(__file__).parents[2]
PORT = ServeSettings.model_fields["port"].default
PATHS = {route.path for route in (*routes.v1.routes, *routes.operations.routes) if "GET" in route.methods}
OUTCOMES = {"ok", "disconnected", *BY_CODE}


@cache
def variables(command: str) -> set[str]:
    """The `TVKD_…` variables that a command reads."""
    folders = ["shared", "client"] if command in ("train", "prefetch", "preview", "show") else ["shared"]
    sources = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    read = set(re.findall(r'environ\.get\("(TVKD_\w+)"', sources))
    for model in {"serve": [ServeSettings], "store": ACTIONS.values()}.get(command, []):
        read |= {f"TVKD_{name.upper()}" for name in model.model_fields}
    return read


@cache
def metrics() -> set[str]:
    """The names under which Prometheus knows what the server counts."""
    kinds = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + end for family in Metrics().registry.collect() for end in kinds[family.type]}


def command_faults(words: list[str], given: dict[str, str], image: dict[str, str] | None = None) -> list[str]:
    """What is wrong with `tvkd WORDS…` and the variables given to it, over those of its image. Settings are read as the
    command reads them; the trainer's flags, which TRL reads, are looked for in its help."""
    command, flags = words[0], words[1:]
    if command not in COMMANDS:
        return [f"tvkd has no command {command}"]
    faults = [
        f"tvkd {command} reads no variable {name}"
        for name in given
        if name.startswith("TVKD_") and name not in variables(command)
    ]
    if command == "serve":
        settings: type[BaseSettings] = ServeSettings
    elif command == "store":
        if flags[0] not in ACTIONS:
            return [*faults, f"tvkd store has no action {flags[0]}"]
        settings, flags = ACTIONS[flags[0]], flags[1:]
    else:
        named = [word.partition("=")[0] for word in flags if word.startswith("--")]
        return faults + [f"tvkd {command} has no flag {flag}" for flag in named if flag not in flags_of(command)]
    said = io.StringIO()
    with patch.dict(os.environ, (image or {}) | given), contextlib.redirect_stderr(said):
        try:
            read = from_command_line(settings, flags)
            if isinstance(read, ServeSettings):
                refuse_what_changes_values(read.engine_args)
        except InvalidRequest as error:
            faults.append(f"tvkd {command}: {error}")
        except SystemExit:  # how argparse refuses a flag
            faults.append(said.getvalue().splitlines()[-1])
    return faults


def query_faults(query: str) -> list[str]:
    """What a PromQL expression names that no server counts."""
    faults = [f"no metric {name}" for name in re.findall(r"\btvkd_\w+", query) if name not in metrics()]
    for matched in re.findall(r'outcome=~?"([^"]*)"', query):
        faults += [f"no outcome {outcome}" for outcome in matched.split("|") if outcome not in OUTCOMES]
    return faults
