"""Every setting of `tvkd demo`: one model, from which the flags and `--help` are made."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from tvkd_shared.shaping import Aggregate, Potential, Terminal


class DemoSettings(BaseSettings):
    """Run the main job on a real small teacher: fill a store over HTTP, train students from it. No network."""

    model_config = SettingsConfigDict(
        env_prefix="TVKD_", cli_prog_name="tvkd demo", cli_kebab_case=True, cli_hide_none_type=True, extra="forbid"
    )

    output: Path = Field(Path("demo-output"), description="folder for the store, the server's log and summary.json")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="the server's engine")
    pairs: PositiveInt | None = Field(None, description="use only the first so many of the 1,000 pairs")
    steps: PositiveInt = Field(14, description="training steps of each run, 8 pairs a step")
    seed: int = Field(0, description="of the order of the pairs and of the control's shuffle")
    potential: Potential = Field("entropy", description="Φ of the TVKD runs")
    gamma: float = Field(0.0, ge=0, le=1, description="γ of the TVKD runs")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="τ of the TVKD runs; entropy uses none")
    terminal: Terminal = Field("state", description="what Φ is after the last token")
    aggregate: Aggregate = Field("mean", description="Σψ, or Σψ / T")
