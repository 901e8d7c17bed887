"""How a command is found, run and ended: one table, one dispatcher, one line for a mistake."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvkd_shared.errors import (
    Forbidden,
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    TeacherMismatch,
    TVKDError,
    Unauthorized,
)

if TYPE_CHECKING:
    from tvkd_shared.settings import Command

_USERS_MISTAKES = (
    Forbidden,
    InvalidRequest,
    NoStore,
    NotCached,
    PayloadTooLarge,
    TeacherMismatch,
    Unauthorized,
    FileNotFoundError,
)


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

    def run() -> int:
        if name in ("-h", "--help", "--version"):
            print(f"{program} {version('tvkd')}" if name == "--version" else _usage(program, commands))
            return 0
        if name not in commands:
            raise InvalidRequest(f"no command {name!r}; there are {', '.join(commands)}")
        command = _load(commands[name])
        # `tvkd --help` and a trainer that names no command need no settings, and they take long to load.
        from tvkd_shared.settings import from_command_line  # noqa: PLC0415

        return from_command_line(command, flags).run() if isinstance(command, type) else command(flags)

    return exit_code(f"{program} {name}" if name in commands else program, run)


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

    With `TVKD_TRACEBACK=1` a fault is shown with its traceback. 141, and no word, when nobody reads what it prints.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # As in `tvkd show | head`. What is left in the buffer would be flushed once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        return 130
    except (TVKDError, OSError) as error:
        if os.environ.get("TVKD_TRACEBACK"):
            raise
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, _USERS_MISTAKES) else 1


def _usage(program: str, commands: Mapping[str, Entry]) -> str:
    lines = "\n".join(f"  {name:<10} {entry.help}" for name, entry in commands.items())
    return f"usage: {program} COMMAND [flags]\n\n{lines}\n\n`{program} COMMAND --help` lists a command's flags."
