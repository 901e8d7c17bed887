"""`tvkd demo`: teacher, server, store, preview and a small study of four objectives, in one command."""

import os
import warnings
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from tvkd_shared.settings import Command


class Demo(Command, cli_prog_name="tvkd demo"):
    """Run the main job on a real small teacher: fill a store over HTTP, look, train students from it. No network."""

    output: Path = Field(Path("demo-output"), description="folder for the store, the study and summary.json")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="the server's engine")
    pairs: PositiveInt | None = Field(None, description="use only the first so many of the 1,000 pairs")
    steps: NonNegativeInt = Field(
        10, description="training steps of each student, 8 pairs a step; 0 makes no student, and only shows the values"
    )
    seeds: PositiveInt = Field(1, description="how often each student is trained, each time with another seed")

    def run(self) -> int:
        # What is set for the user's own server and trainer is not for this one.
        for name in [name for name in os.environ if name.startswith("TVKD_") and name != "TVKD_TRACEBACK"]:
            del os.environ[name]
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TQDM_DISABLE"] = "1"  # the demo draws its own bars
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        from tvkd.demo.run import run  # noqa: PLC0415 - the libraries read those variables once, when imported

        return run(self)
