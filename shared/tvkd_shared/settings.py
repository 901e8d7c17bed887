"""How every command reads its settings, runs and ends: one model for flags and variables, one table, one dispatcher."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, create_model, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tvkd_shared.errors import (
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    TeacherMismatch,
    TVKDError,
    Unauthorized,
)
from tvkd_shared.shaping import Shaping

_USERS_MISTAKES = (
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    TeacherMismatch,
    Unauthorized,
    FileNotFoundError,
)


class Command(BaseSettings):
    """A command's settings, each a flag and a `TVKD_…` variable, and what it does with them.

    A subclass names its program, as in `class Serve(Command, cli_prog_name="tvkd serve")`. `alternatives` are settings
    of which one is wanted: a flag for one of them makes the variables of all of them count for nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix="TVKD_", cli_kebab_case=True, cli_hide_none_type=True, cli_implicit_flags=True, extra="forbid"
    )
    alternatives: ClassVar[frozenset[str]] = frozenset()

    def run(self) -> int:
        """Do it. Returns the exit code. Raises the errors of `tvkd_shared.errors`."""
        raise NotImplementedError

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Variables(settings_cls, cls.alternatives)


Settings = TypeVar("Settings", bound=BaseSettings)


def shaping_command(program: str, *choices: str, **defaults: Any) -> Any:
    """A base for commands with a flag for each of these choices of `Shaping`, by default all of them.

    `defaults` replace those of `Shaping`. The command's `shaping` is what its flags choose.
    """
    flags: dict[str, Any] = {
        choice.name: (
            choice.type,
            Field(defaults.get(choice.name, choice.default), description=choice.metadata["help"]),
        )
        for choice in fields(Shaping)
        if not choices or choice.name in choices
    }

    class ShapingCommand(create_model("ShapingFlags", __base__=Command, **flags)):  # type: ignore[misc]
        model_config = SettingsConfigDict(cli_prog_name=program)

        @property
        def shaping(self) -> Shaping:
            return Shaping(**{name: getattr(self, name) for name in flags})

        @field_validator(*flags)
        @classmethod
        def _check_choice(cls, value: Any, info: ValidationInfo) -> Any:
            return getattr(Shaping(**{str(info.field_name): value}), str(info.field_name))

    return ShapingCommand


class Entry(NamedTuple):
    """A command of a table: where it is, as `module:name`, the extra that brings its packages, and a line of help.

    The name is that of a Command, or of a function that takes the flags and returns an exit code.
    """

    place: str
    extra: str
    help: str


class _Program(Protocol):
    def __call__(self, argv: list[str]) -> int: ...


def dispatch(program: str, commands: Mapping[str, Entry], argv: list[str]) -> int:
    """Run `PROGRAM COMMAND …`. Returns 0 when done, 2 for a user's mistake, 1 for a fault, 130 after Ctrl-C."""
    name, *flags = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage(program, commands))
        return 0
    if name == "--version":
        print(f"{program} {version('tvkd')}")
        return 0
    if name not in commands:
        print(f"{program}: no command {name!r}; there are {', '.join(commands)}", file=sys.stderr)
        return 2

    def run() -> int:
        command = _load(commands[name])
        return from_command_line(command, flags).run() if isinstance(command, type) else command(flags)

    return exit_code(f"{program} {name}", run)


def _load(entry: Entry) -> "type[Command] | _Program":
    """The command of an entry. Raises InvalidRequest when a package that it needs is not installed."""
    module, _, attribute = entry.place.partition(":")
    try:
        command: type[Command] | _Program = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tvkd"):
            raise
        raise InvalidRequest(f"{error.name} is not installed; run: pip install 'tvkd[{entry.extra}]'") from error
    return command


def exit_code(command: str, run: Callable[[], int]) -> int:
    """Run a command: its own code when done, 2 for a user's mistake, 1 for a fault, each told in one line.

    With `TVKD_TRACEBACK=1` a fault is shown with its traceback.
    """
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except (TVKDError, OSError) as error:
        if os.environ.get("TVKD_TRACEBACK"):
            raise
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, _USERS_MISTAKES) else 1


def from_command_line(model: type[Settings], argv: list[str]) -> Settings:
    """Settings from flags, then `TVKD_…` variables, then defaults. Raises InvalidRequest that names every wrong one."""
    try:
        return CliApp.run(model, cli_args=argv)
    except ValidationError as error:
        raise InvalidRequest("; ".join(_mistake(model, fault) for fault in error.errors())) from error
    except SettingsError as error:
        raise InvalidRequest(f"{error}; a list is written as JSON, such as [1.0, 2.0]") from error


class _Variables(EnvSettingsSource):
    """`TVKD_…` variables, without those of `alternatives` when a flag names one of them."""

    def __init__(self, model: type[BaseSettings], alternatives: frozenset[str]) -> None:
        super().__init__(model)
        self._alternatives = alternatives

    def __call__(self) -> dict[str, Any]:
        # A field with an alias, such as --json, would be read from a variable without the prefix.
        settings = self.settings_cls.model_fields
        variables = {name: value for name, value in super().__call__().items() if name in settings}
        if self._alternatives.isdisjoint(self.current_state):
            return variables
        return {name: value for name, value in variables.items() if name not in self._alternatives}


def _mistake(model: type[BaseSettings], fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    field = str(fault["loc"][0])
    prefix = model.model_config.get("env_prefix", "")
    if fault["type"] == "missing":
        return f"--{field.replace('_', '-')} is needed (or {prefix}{field.upper()} in the environment)"
    return f"--{field.replace('_', '-')}: {message}"


def _usage(program: str, commands: Mapping[str, Entry]) -> str:
    lines = "\n".join(f"  {name:<10} {entry.help}" for name, entry in commands.items())
    return f"usage: {program} COMMAND [flags]\n\n{lines}\n\n`{program} COMMAND --help` lists a command's flags."
