"""`tvkd demo`: teacher, server, store, three students and the tables, in one command and about five minutes."""

import os
import warnings

from tvkd.demo.settings import DemoSettings
from tvkd_shared.settings import exit_code, from_command_line


def main(argv: list[str]) -> int:
    """Run the demo. Returns 0 done, 2 for a user's mistake, 1 for a fault."""
    return exit_code("tvkd demo", lambda: _demo(argv))


def _demo(argv: list[str]) -> int:
    settings = from_command_line(DemoSettings, argv)
    # What is set for the user's own server and trainer is not for this one.
    for name in [name for name in os.environ if name.startswith("TVKD_") and name != "TVKD_TRACEBACK"]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # the demo draws its own bars
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from tvkd.demo.run import run  # noqa: PLC0415 - the libraries read those variables once, when imported

    return run(settings)
