"""`tvkd train` as far as it goes without TRL, which takes long to import: help, example, and whether servers answer."""

import argparse
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml

from tvkd_client.training_settings import Role, TrainingSettings, help_text
from tvkd_shared.errors import TVKDError


def train(argv: list[str]) -> int:
    """See `tvkd_client.train.train`, and `--help` and `--example` beside it. Raises the errors of a server asked."""
    if not {"-h", "--help"}.isdisjoint(argv):
        print(help_text())
        return 0
    if argv == ["--example"]:
        sys.stdout.write((files("tvkd_client") / "tvkd.yaml").read_text(encoding="utf-8"))
        return 0
    from tvkd_client.source import ServerSource  # noqa: PLC0415

    for role, url in servers(argv):
        try:
            ServerSource(url).client.teacher()
        except TVKDError as error:
            raise type(error)(f"{role}: {error.message}", retry_after=error.retry_after) from error
    from tvkd_client.train import train as run  # noqa: PLC0415

    return run(["--help"] if argv == ["--help-trl"] else argv)


def servers(argv: list[str]) -> Iterator[tuple[str, str]]:
    """The roles that the flags and their file would have read from a server, each with its URL.

    What is not understood here is left for TRL's parser to say.
    """
    from tvkd_client.source import is_server  # noqa: PLC0415

    names = ("objective", "alpha", "potential", *get_args(Role))
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("config", *names):
        flags.add_argument(f"--{name}", f"--{name.replace('_', '-')}", default=argparse.SUPPRESS)
    try:
        given: dict[str, Any] = vars(flags.parse_known_args(argv)[0])
        file = yaml.safe_load(Path(given.pop("config")).read_text(encoding="utf-8")) if "config" in given else {}
        named = {name: file[name] for name in names if name in file} | given
        settings = TrainingSettings(**named | {"alpha": float(named.get("alpha", 1))})
        read = [role for role in get_args(Role) if settings.reads(role)]
    except (argparse.ArgumentError, OSError, TypeError, ValueError, LookupError, TVKDError, yaml.YAMLError):
        return
    for role in read:
        place = getattr(settings, role)
        if isinstance(place, str) and is_server(place):
            yield role, place
