"""Every overlay renders, fits its schemas and holds the policy; a deliberate mistake in any of them is found."""

import copy
import re

import pytest
import yaml
from policy import faults, pods
from program import command_faults
from rendering import EVERYTHING, OVERLAYS, WITH_KEYS, kustomize, render
from schemas import schema_faults

each = pytest.mark.parametrize("folder", EVERYTHING)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def beside(folder):
    """What an overlay finds in the cluster: the claims, and for the trainer the service."""
    return [] if folder == "files" else render("files") + (render(OVERLAYS[0]) if folder == "trainer" else [])


@each
def test_every_object_fits_its_schema(folder):
    assert schema_faults(render(folder)) == []


@each
def test_every_object_holds_the_policy(folder):
    found = faults(render(folder), beside(folder))
    # A pod to copy files through reaches what its user asks it to, for the minutes that it lives.
    assert [fault for fault in found if fault != "Pod tvkd-files: no NetworkPolicy selects its pods"] == []


def test_the_trainers_settings_are_settings():
    (config,) = [one for one in render("trainer") if one["kind"] == "ConfigMap"]
    settings = yaml.safe_load(config["data"]["tvkd.yaml"])
    assert command_faults(["train", *(f"--{name}" for name in settings)], {}) == []


@each_overlay
def test_without_the_files_that_hold_secrets_nothing_is_rendered(overlay):
    done = kustomize(overlay, secrets=False)
    assert done.returncode != 0 and re.search("api-key|s3.env", done.stderr)


@pytest.mark.parametrize("overlay", WITH_KEYS)
def test_the_component_gives_the_server_a_file_of_keys_that_is_there(overlay):
    objects = copy.deepcopy(render(overlay))
    assert "TVKD_API_KEYS" in {one["name"] for one in container(objects)["env"]}
    del first(objects, "Secret")["data"]["api-keys.toml"]
    assert "Secret tvkd-api-key has no api-keys.toml" in " ".join(faults(objects, beside(overlay)))


def server(objects):
    return next(pod for _, _, pod in pods(objects) if pod["containers"][0]["name"] == "server")


def container(objects):
    return server(objects)["containers"][0]


def variable(objects, name, value):
    env = container(objects)["env"]
    env[:] = [one for one in env if one["name"] != name] + [{"name": name, "value": value}]


def without(kind):
    return lambda objects: objects.remove(next(one for one in objects if one["kind"] == kind))


def first(objects, kind):
    return next(one for one in objects if one["kind"] == kind)


def unknown_flag(objects):
    one = container(objects)
    if "command" in one:
        one["command"][-1] += " --max-batch-token 1"
    else:
        one["args"] = ["serve", "--max-batch-token", "1"]


MISTAKES = {
    "a missing secret": (without("Secret"), "no Secret tvkd-"),
    "a secret without the key": (lambda o: first(o, "Secret").update(data={}), "Secret tvkd-api-key has no api-key"),
    "a wrong container port": (lambda o: container(o)["ports"][0].update(containerPort=8000), "its port http is 8000"),
    "a wrong service port": (
        lambda o: first(o, "Service")["spec"]["ports"][0].update(port=80), "port 80 is not the server's"),
    "a service port that is none": (
        lambda o: first(o, "Service")["spec"]["ports"][0].update(targetPort="web"), "targetPort web"),
    "another port for the server": (lambda o: variable(o, "TVKD_PORT", "9000"), "the server listens on 9000"),
    "an unknown flag": (unknown_flag, "--max-batch-token"),
    "an unknown variable": (lambda o: variable(o, "TVKD_MAX_BATCH_TOKEN", "1"), "no variable TVKD_MAX_BATCH_TOKEN"),
    "a value that is none": (lambda o: variable(o, "TVKD_DRAIN_SECONDS", "soon"), "--drain-seconds"),
    "a wrong path": (lambda o: container(o)["readinessProbe"]["httpGet"].update(path="/ready"), "readinessProbe asks"),
    "a probe left out": (lambda o: container(o).pop("livenessProbe"), "livenessProbe asks nothing"),
    "a hasty startup": (lambda o: container(o)["startupProbe"].update(failureThreshold=3), "less than half an hour"),
    "less grace than drain": (lambda o: variable(o, "TVKD_DRAIN_SECONDS", "300"), "pause, drain, sealing"),
    "no pause": (lambda o: container(o).pop("lifecycle"), "preStop must pause"),
    "root": (lambda o: server(o)["securityContext"].update(runAsNonRoot=False), "may run as root"),
    "a writable root": (
        lambda o: container(o)["securityContext"].update(readOnlyRootFilesystem=False), "writes to its root"),
    "privileges": (lambda o: container(o)["securityContext"].update(allowPrivilegeEscalation=True), "gain privileges"),
    "no limits": (lambda o: container(o)["resources"].pop("limits"), "no limit for memory"),
    "service links": (lambda o: server(o).pop("enableServiceLinks"), "TVKD_PORT that is a URL"),
    "a missing claim": (
        lambda o: server(o)["volumes"].append({"name": "x", "persistentVolumeClaim": {"claimName": "x"}}),
        "no PersistentVolumeClaim x"),
    "a store on no volume": (lambda o: variable(o, "TVKD_STORE", "/var/store"), "/var/store is on no volume"),
    "the latest image": (lambda o: container(o).update(image="tvkd-server-cpu:latest"), "is no released version"),
    "an image of none": (lambda o: container(o).update(image="tvkd-serve:0.1.0"), "the Dockerfile does not build"),
    "open to everybody": (
        lambda o: first(o, "NetworkPolicy")["spec"]["ingress"][0].pop("from"), "lets everybody in"),
    "no network policy": (
        lambda o: o.__setitem__(slice(None), [one for one in o if one["kind"] != "NetworkPolicy"]), "no NetworkPolicy"),
    "a budget that blocks": (
        lambda o: first(o, "PodDisruptionBudget")["spec"].update(maxUnavailable=0), "one pod go at a time"),
}  # fmt: skip


@each_overlay
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(overlay, mistake):
    make, told = MISTAKES[mistake]
    objects = copy.deepcopy(render(overlay))
    make(objects)
    assert [fault for fault in faults(objects, beside(overlay)) if told in fault]


def upkeep(job):
    return job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]


OF_ONE_KIND = {
    "an alert on no metric": (
        "PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][1].update(expr="tvkd_request_total > 0"),
        "TvkdFailing: no metric tvkd_request_total"),
    "an alert on no outcome": (
        "PrometheusRule", lambda o: o["spec"]["groups"][0]["rules"][1].update(expr='x{outcome="busy"} > 0'),
        "no outcome busy"),
    "a scrape of no path": (
        "ServiceMonitor", lambda o: o["spec"]["endpoints"][0].update(path="/metric"), "/metric is no path"),
    "scaling by no metric": (
        "ScaledObject", lambda o: o["spec"]["triggers"][0]["metadata"].update(query="sum(tvkd_queue)"),
        "no metric tvkd_queue"),
    "an unknown flag of the upkeep": (
        "CronJob", lambda o: upkeep(o)["args"].append("--all"), "unrecognized arguments: --all"),
    "an unknown action of the upkeep": (
        "CronJob", lambda o: upkeep(o).update(args=["store", "pack"]), "no action pack"),
    "an upkeep of no store": (
        "CronJob", lambda o: upkeep(o)["env"][0]["valueFrom"]["secretKeyRef"].update(key="STORE"),
        "Secret tvkd-s3 has no STORE"),
    "scaling of nothing": (
        "ScaledObject", lambda o: o["spec"]["scaleTargetRef"].update(name="server"), "no StatefulSet server"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", OF_ONE_KIND)
def test_a_mistake_around_the_server_is_found(mistake):
    kind, make, told = OF_ONE_KIND[mistake]
    objects = copy.deepcopy(render("overlays/team"))
    make(first(objects, kind))
    assert [fault for fault in faults(objects, beside("overlays/team")) if told in fault]


def test_a_trainer_that_asks_elsewhere_is_found():
    objects = copy.deepcopy(render("trainer"))
    config = first(objects, "ConfigMap")["data"]
    config["tvkd.yaml"] = config["tvkd.yaml"].replace("http://tvkd:8077", "http://tvkd:80")
    assert "tvkd:80 is no Service" in " ".join(faults(objects, beside("trainer")))


@pytest.mark.parametrize("folder", EVERYTHING)
def test_a_field_that_is_none_is_found_in_every_object(folder):
    for one in render(folder):
        wrong = copy.deepcopy(one)
        wrong.get("spec", wrong)["replica"] = 1
        assert schema_faults([wrong]), one["kind"]
