"""`tvkd demo`: teacher, server, store, three students and the tables, in one command and about five minutes."""

import os
import warnings
from pathlib import Path

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from tvkd_shared.settings import exit_code, from_command_line
from tvkd_shared.shaping import Aggregate, Potential, Terminal


class DemoSettings(BaseSettings):
    """Run the main job on a real small teacher: fill a store over HTTP, train students from it. No network."""

    model_config = SettingsConfigDict(
        env_prefix="TVKD_", cli_prog_name="tvkd demo", cli_kebab_case=True, cli_hide_none_type=True, extra="forbid"
    )

    output: Path = Field(Path("demo-output"), description="folder for the store, the server's log and summary.json")
    pairs: PositiveInt | None = Field(None, description="use only the first so many of the 1,000 pairs")
    steps: PositiveInt = Field(14, description="training steps of each run, 8 pairs a step")
    seed: int = Field(0, description="of the order of the pairs and of the control's shuffle")
    potential: Potential = Field("entropy", description="Φ of the TVKD runs")
    gamma: float = Field(0.0, ge=0, le=1, description="γ of the TVKD runs")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="τ of the TVKD runs; entropy uses none")
    terminal: Terminal = Field("state", description="what Φ is after the last token")
    aggregate: Aggregate = Field("mean", description="Σψ, or Σψ / T")


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
