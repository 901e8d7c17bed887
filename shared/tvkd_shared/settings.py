"""How every command reads its settings and ends: one model for flags and variables, one line for a mistake."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, EnvSettingsSource, SettingsError

from tvkd_shared.errors import (
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    StoreInUse,
    TeacherMismatch,
    TVKDError,
    Unauthorized,
)

Settings = TypeVar("Settings", bound=BaseSettings)

_USERS_MISTAKE = (
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    StoreInUse,
    TeacherMismatch,
    Unauthorized,
    FileNotFoundError,
)


def from_command_line(model: type[Settings], argv: list[str]) -> Settings:
    """Settings from flags, then `TVKD_…` variables, then defaults. Raises InvalidRequest with every wrong one named."""
    try:
        return CliApp.run(model, cli_args=argv)
    except ValidationError as error:
        raise InvalidRequest("; ".join(_mistake(model, fault) for fault in error.errors())) from error
    except SettingsError as error:
        raise InvalidRequest(f"{error}; a list is written as JSON, such as [1.0, 2.0]") from error


class FlagOverVariables(EnvSettingsSource):
    """`TVKD_…` variables, less those of `alternatives` when a flag names one of them: one is wanted, and it won."""

    def __init__(self, model: type[BaseSettings], alternatives: set[str]) -> None:
        super().__init__(model)
        self._alternatives = alternatives

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if self._alternatives.isdisjoint(self.current_state):
            return found
        return {name: value for name, value in found.items() if name not in self._alternatives}


def _mistake(model: type[BaseSettings], fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    field = str(fault["loc"][0])
    prefix = model.model_config.get("env_prefix", "")
    if fault["type"] == "missing":
        return f"--{field.replace('_', '-')} is needed (or {prefix}{field.upper()} in the environment)"
    return f"--{field.replace('_', '-')}: {message}"


def exit_code(command: str, run: Callable[[], int]) -> int:
    """Run a command: its own code when done, 2 for a user's mistake, 1 for a fault, each told in one line.

    `TVKD_TRACEBACK=1` lets a fault through with its traceback.
    """
    try:
        return run()
    except (TVKDError, OSError) as error:
        if os.environ.get("TVKD_TRACEBACK"):
            raise
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, _USERS_MISTAKE) else 1
