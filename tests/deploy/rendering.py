"""`kubectl kustomize` of deploy/kubernetes, with the files beside it that whoever deploys makes."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import yaml
from installed import installed

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = ["overlays/cpu-embedded", "overlays/gpu-vllm", "overlays/team", "overlays/multi-node"]
WITH_KEYS = [f"{overlay}+keys" for overlay in OVERLAYS]
"""Overlays as someone who gives several API keys changes them: with the component `keys`."""
EVERYTHING = [*OVERLAYS, *WITH_KEYS, "trainer", "files"]


@cache
def render(folder: str) -> list[dict]:
    """All objects of an overlay. Do not change them: they are the same for every test."""
    return list(yaml.safe_load_all(kustomize(folder, secrets=True).stdout))


def kustomize(folder: str, *, secrets: bool) -> subprocess.CompletedProcess[str]:
    kubectl = installed("kubectl", "1.21 or later, Debian's kubernetes-client")
    with tempfile.TemporaryDirectory() as copy:
        here = Path(shutil.copytree(DEPLOY, Path(copy) / "deploy")) / "kubernetes"
        for path, text in (
            (here / "base/api-key", "key"),
            (here / "s3/s3.env", "TVKD_STORE=s3://tvkd/values\nAWS_ACCESS_KEY_ID=id\n"),
            (here / "keys/api-keys.toml", "[trainer]\nsha256 = '00'\n"),
        ):
            path.unlink(missing_ok=True)  # whoever runs the tests may have made their own
            if secrets:
                path.write_text(text)
        folder, _, component = folder.partition("+")
        if component:
            settings = here / folder / "kustomization.yaml"
            read = yaml.safe_load(settings.read_text())
            read["components"] = [*read.get("components", []), f"../../{component}"]
            settings.write_text(yaml.safe_dump(read))
        done = subprocess.run([kubectl, "kustomize", here / folder], capture_output=True, text=True)
    assert done.returncode == 0 or not secrets, done.stderr
    return done
