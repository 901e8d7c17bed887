"""The Dockerfile's stages, as far as deploy/ builds on them: variables, user, port, entry point, command."""

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One stage with all that it takes over from its base."""

    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    ports: set[int] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def stages(text: str) -> dict[str, Stage]:
    """Stages by name. Raises ValueError for an entry point, command or health check in shell form: its shell would
    keep signals from the server, and a read-only, non-root image needs none."""
    found: dict[str, Stage] = {}
    lines = [line for line in text.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")]
    stage = Stage()
    for word, rest in (line.split(maxsplit=1) for line in lines):
        match word:
            case "FROM":
                base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
                parent = found.get(base, Stage())
                stage = found[name] = replace(
                    parent, environment={**parent.environment}, ports={*parent.ports}, volumes={*parent.volumes}
                )
            case "ENV":
                stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "USER":
                stage.user = rest
            case "EXPOSE":
                stage.ports |= {int(port) for port in rest.split()}
            case "VOLUME":
                stage.volumes |= set(rest.split())
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "CMD":
                stage.command = json.loads(rest)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(rest.partition(" CMD ")[2])
    return found


def stage_of(image: str) -> Stage | None:
    """The stage that an image named in deploy/ is built from; None for another project's image."""
    name = image.rpartition("/")[2].partition(":")[0].removeprefix("tvkd-")
    # The image for several machines is the vLLM one with Ray in it.
    return stages((ROOT / "Dockerfile").read_text()).get({"server-ray": "server-vllm"}.get(name, name))
