"""`tvkd`: one command, each part imported only when asked for, so that a trainer needs no server package."""

import importlib
import sys
from importlib.metadata import version

COMMANDS = {
    # name: (module with main(argv) -> exit code, extra that brings its packages, one line of help)
    "serve": ("tvkd_server.serve", "server", "serve a teacher's values over HTTP and keep them"),
    "prefetch": ("tvkd_client.prefetch", "train", "fill a server's store with the values of a preference data set"),
    "train": ("tvkd_client.train", "train", "align a student with TVKD under TRL's DPOTrainer"),
    "show": ("tvkd_client.show", "train", "one pair, coloured token by token by its shaping"),
    "store": ("tvkd.store.command", "server", "a store's contents: check, merge, publish them"),
    "demo": ("tvkd.demo.demo", "demo", "all of it on a small real teacher, in minutes"),
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch `tvkd COMMAND …`. Returns 0 done, 2 a user's mistake, 1 a fault."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"tvkd {version('tvkd')}")
        return 0
    if name not in COMMANDS:
        print(f"tvkd: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, extra, _ = COMMANDS[name]
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tvkd"):
            raise
        print(f"tvkd {name}: {error.name} is not installed; run: pip install 'tvkd[{extra}]'", file=sys.stderr)
        return 2
    try:
        return int(command.main(rest))
    except KeyboardInterrupt:
        return 130


def _usage() -> str:
    lines = "\n".join(f"  {name:<10} {line}" for name, (_, _, line) in COMMANDS.items())
    return f"usage: tvkd COMMAND [flags]\n\n{lines}\n\n`tvkd COMMAND --help` lists a command's flags."


if __name__ == "__main__":
    sys.exit(main())
