"""`tvkd demo`: teacher, server, store, three students and the tables, in one command and about five minutes."""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from tvkd_shared.settings import shaping_command

_Flags: Any = shaping_command("tvkd demo", gamma=0.0, potential="entropy", aggregate="mean")


class Demo(_Flags):  # type: ignore[misc]
    """Run the main job on a real small teacher: fill a store over HTTP, train students from it. No network."""

    output: Path = Field(Path("demo-output"), description="folder for the store, the server's log and summary.json")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="the server's engine")
    pairs: PositiveInt | None = Field(None, description="use only the first so many of the 1,000 pairs")
    steps: PositiveInt = Field(14, description="training steps of each run, 8 pairs a step")
    seed: int = Field(0, description="of the order of the pairs and of the control's shuffle")

    def run(self) -> int:
        # What is set for the user's own server and trainer is not for this one.
        for name in [name for name in os.environ if name.startswith("TVKD_") and name != "TVKD_TRACEBACK"]:
            del os.environ[name]
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TQDM_DISABLE"] = "1"  # the demo draws its own bars
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        from tvkd.demo.run import run  # noqa: PLC0415 - the libraries read those variables once, when imported

        return run(self)
