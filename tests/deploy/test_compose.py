"""The compose files fit the specification, and what they name is there."""

import copy
import re
import subprocess
import sys

import pytest
import yaml
from dockerfile import stages
from policy import command_line
from program import PORT, command_faults
from rendering import DEPLOY

DOCKERFILE = stages((DEPLOY.parent / "Dockerfile").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
GPU = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
KEYS = yaml.safe_load((DEPLOY / "compose.keys.yaml").read_text())["services"]


def over(base, override):
    """Services as compose merges them, mappings and lists are merged, the rest is replaced."""
    if isinstance(base, list):
        return base + override
    if not isinstance(base, dict):
        return override
    return base | {name: over(base.get(name), value) for name, value in override.items()}


WITH_GPU = over(COMPOSE, GPU)
WITH_KEYS = over(COMPOSE, KEYS)


def faults(services):
    found = []
    for name, service in services.items():
        said = [*_confinement(service), *_ports(service), *_volumes(service)]
        if "build" in service:
            said += _own(service)
        found += [f"{name}: {fault}" for fault in said]
    return found


def _confinement(service):
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"] or service.get("privileged"):
        yield "is not confined"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "may gain privileges"
    if "mem_limit" not in service:
        yield "has no limit for memory"


def _ports(service):
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            yield f"{port} is open to other machines"


def _volumes(service):
    for volume in service.get("volumes", []):
        source = re.sub(r"\$\{\w+[^}]*\}", "/given", volume).partition(":")[0]
        if source.startswith(".") and not (DEPLOY / source).exists():
            yield f"{source} is not there"


def _own(service):
    if (stage := DOCKERFILE.get(service["build"]["target"])) is None:
        yield f"the Dockerfile has no target {service['build']['target']}"
        return
    container = {"args": service["command"]} if "command" in service else {}
    environment = {key: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", value) for key, value in service["environment"].items()}
    if "TVKD_API_KEY" not in environment:
        yield "has no API key"
    words = command_line(container, stage)
    yield from command_faults(words, environment, stage.environment)
    if file := environment.get("TVKD_API_KEYS"):
        folders = [volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"]]
        if file.rpartition("/")[0] not in folders:
            yield f"{file} is in no folder that is mounted"
    if words[0] == "serve":
        if [port.rpartition(":")[2] for port in service["ports"]] != [str(PORT)]:
            yield f"publishes no port {PORT}"
        grace, drain = int(service["stop_grace_period"].removesuffix("s")), int(environment["TVKD_DRAIN_SECONDS"])
        if grace < drain + 15:
            yield "is killed before it has drained and sealed"
    for url in re.findall(r"http://(\S+)", " ".join(words)):
        if url != f"server:{PORT}":
            yield f"{url} is no server"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml", "compose.keys.yaml"])
def test_a_compose_file_fits_the_specification(name):
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_field_that_is_none_is_found(tmp_path):
    (tmp_path / "compose.yaml").write_text((DEPLOY / "compose.yaml").read_text().replace("read_only", "readonly"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            tmp_path / "compose.yaml",
        ],
        capture_output=True,
    )
    assert done.returncode != 0


@pytest.mark.parametrize("services", [COMPOSE, WITH_GPU, WITH_KEYS], ids=["cpu", "gpu", "keys"])
def test_every_service_is_confined_and_names_what_is_there(services):
    assert faults(services) == []


def test_prometheus_and_grafana_look_where_the_others_are():
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == [f"server:{PORT}"]
    source = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://" + COMPOSE["prometheus"]["ports"][0].replace("127.0.0.1:9090", "prometheus")
    folder = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())["providers"][0]["options"]["path"]
    assert f"./dashboards:{folder}:ro" in COMPOSE["grafana"]["volumes"]


MISTAKES = {
    "a missing secret": (lambda s: s["server"]["environment"].pop("TVKD_API_KEY"), "server: has no API key"),
    "a wrong port": (lambda s: s["server"].update(ports=["127.0.0.1:8077:8000"]), "server: publishes no port 8077"),
    "a port for everybody": (lambda s: s["server"].update(ports=["8077:8077"]), "8077:8077 is open to other machines"),
    "an unknown flag": (lambda s: s["trainer"]["command"].append("--reward"), "tvkd train has no flag --reward"),
    "an unknown flag of the server": (lambda s: s["server"].update(command=["serve", "--stor", "x"]), "--stor"),
    "an unknown variable": (
        lambda s: s["server"]["environment"].update(TVKD_MODELS="x"), "tvkd serve reads no variable TVKD_MODELS"),
    "another server": (
        lambda s: s["trainer"].update(command=["train", "--teacher", "http://teacher:8077"]),
        "teacher:8077 is no server"),
    "a missing file": (
        lambda s: s["grafana"].update(volumes=["./grafana/board.yaml:/x"]), "./grafana/board.yaml is not there"),
    "an unknown target": (lambda s: s["server"]["build"].update(target="server-gpu"), "no target server-gpu"),
    "less grace than drain": (lambda s: s["server"].update(stop_grace_period="30s"), "before it has drained"),
    "a writable root": (lambda s: s["server"].update(read_only=False), "server: is not confined"),
}  # fmt: skip


def test_a_file_of_keys_on_no_volume_is_found():
    wrong = copy.deepcopy(WITH_KEYS)
    wrong["server"]["volumes"].pop()
    assert faults(wrong) == ["server: /run/keys/api-keys.toml is in no folder that is mounted"]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("services", [COMPOSE, WITH_GPU], ids=["cpu", "gpu"])
def test_a_mistake_is_found(services, mistake):
    make, told = MISTAKES[mistake]
    wrong = copy.deepcopy(services)
    make(wrong)
    assert [fault for fault in faults(wrong) if told in fault]
