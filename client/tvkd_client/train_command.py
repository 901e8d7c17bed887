"""`tvkd train` as far as it goes without TRL, which takes long to import: the help and the example."""

import sys
from importlib.resources import files

from tvkd_client.training_settings import help_text


def train(argv: list[str]) -> int:
    """See `tvkd_client.train.train`, and `--help` and `--example` beside it."""
    if argv in (["-h"], ["--help"]):
        print(help_text())
        return 0
    if argv == ["--example"]:
        sys.stdout.write((files("tvkd_client") / "tvkd.yaml").read_text(encoding="utf-8"))
        return 0
    from tvkd_client.train import train as run  # noqa: PLC0415

    return run(["--help"] if argv == ["--help-trl"] else argv)
