"""What a rendered overlay must hold, over and above its schemas. Each fault is one line."""

import re
import shlex
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from dockerfile import Stage, stage_of
from program import PATHS, PORT, command_faults, query_faults

Object = dict[str, Any]
SEALING_SECONDS = 15
"""What a server gets, after the pause and the drain, to seal its store."""


def faults(objects: list[Object], beside: tuple[Object, ...] | list[Object] = ()) -> list[str]:
    """Every fault of an overlay's objects; `beside` are those that it finds in the cluster."""
    known = [*objects, *beside]
    found: list[str] = []
    for owner, labels, pod in pods(objects):
        found += [f"{owner}: {fault}" for fault in (*_pod(pod), *_references(pod, known, owner))]
        if not any(_selects(policy, "podSelector", labels) for policy in _of(objects, "NetworkPolicy")):
            found.append(f"{owner}: no NetworkPolicy selects its pods")
        for container in containers(pod):
            found += [f"{owner}: {fault}" for fault in _container(container, pod, known)]
    for kind, check in (
        ("Service", _service), ("PodDisruptionBudget", _budget), ("NetworkPolicy", _network_policy),
        ("ServiceMonitor", _monitor), ("PrometheusRule", _alerts), ("ScaledObject", _scaling), ("ConfigMap", _settings),
    ):  # fmt: skip
        for one in _of(objects, kind):
            found += [f"{kind} {one['metadata']['name']}: {fault}" for fault in check(one, known)]
    found += [
        f"{one['kind']} {one['metadata']['name']} is in no namespace" for one in objects if _namespace(one) is None
    ]
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Each pod that the objects lead to: its owner's kind and name, its labels, its spec."""
    for one in objects:
        name, spec = f"{one['kind']} {one['metadata']['name']}", one.get("spec", {})
        if one["kind"] == "Pod":
            templates = [one]
        elif one["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            templates = [group["leaderTemplate"], group["workerTemplate"]]
        elif one["kind"] == "CronJob":
            templates = [spec["jobTemplate"]["spec"]["template"]]
        else:
            templates = [spec["template"]] if "template" in spec else []
        for template in templates:
            yield name, template["metadata"].get("labels", {}), template["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def command_line(container: Object, stage: Stage) -> list[str]:
    """The words after `tvkd` that a container runs, through a shell or not; empty when it runs something else."""
    words = [*(container.get("command") or stage.entrypoint), *(container.get("args") or [])]
    if "command" not in container and "args" not in container:
        words += stage.command
    if words[:2] == ["sh", "-c"]:
        words = shlex.split(words[2])
        words = words[words.index("exec") + 1 :] if "exec" in words else []
    return words[1:] if words[:1] == ["tvkd"] else []


def environment(container: Object, known: list[Object]) -> dict[str, str]:
    """The variables given to a container; those of a Secret as the Secret has them."""
    given = {one["name"]: one.get("value", "") for one in container.get("env", [])}
    for variable in container.get("env", []):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            for secret in _of(known, "Secret"):
                if secret["metadata"]["name"] == reference["name"]:
                    encoded = secret.get("data", {}).get(reference["key"], "")
                    given[variable["name"]] = b64decode(encoded).decode()
    return given


def _pod(pod: Object) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "mounts a token of the cluster's API"
    if pod.get("enableServiceLinks") is not False:
        yield "takes service links, and with them a TVKD_PORT that is a URL"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the node's namespaces"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield "mounts a folder of the node"


def _container(container: Object, pod: Object, known: list[Object]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True:
        yield "writes to its root file system"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
        yield "keeps capabilities"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
        yield "has no requests for CPU and memory, or no limit for memory"
    stage = stage_of(container["image"])
    if stage is None:
        yield f"runs {container['image']}, which the Dockerfile does not build"
        return
    if not re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"]):
        yield f"{container['image']} is no released version"
    mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    yield from (f"{path} must be writable and is no volume" for path in {"/data", "/tmp"} - mounted)
    words, given = command_line(container, stage), environment(container, known)
    found = command_faults(words, given, stage.environment) if words else []
    yield from found
    if words[:1] == ["serve"] and not found:
        yield from _server(container, pod, stage.environment | given, mounted)


def _server(container: Object, pod: Object, variables: dict[str, str], mounted: set[str]) -> Iterator[str]:
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    if ports.get("http") != int(variables["TVKD_PORT"]):
        yield f"its port http is {ports.get('http')}, and the server listens on {variables['TVKD_PORT']}"
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        asked = container.get(probe, {}).get("httpGet", {})
        if asked != {"path": path, "port": "http"} or path not in PATHS:
            yield f"{probe} asks {asked or 'nothing'}, not {path} on port http"
    startup = container.get("startupProbe", {})
    if startup.get("failureThreshold", 3) * startup.get("periodSeconds", 10) < 1800:
        yield "startupProbe gives a slow load less than half an hour"
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pause < 5:
        yield "stops before the nodes know: preStop must pause"
    needed = pause + int(variables.get("TVKD_DRAIN_SECONDS", 30)) + SEALING_SECONDS
    if pod.get("terminationGracePeriodSeconds", 30) < needed:
        yield f"terminationGracePeriodSeconds is below {needed}: pause, drain, sealing"
    paths = [variables["TVKD_MODEL"], variables.get("TVKD_API_KEY_FILE", "")]
    if "TVKD_API_KEYS" in variables:
        paths.append(variables["TVKD_API_KEYS"])
    if "://" not in variables["TVKD_STORE"]:
        paths.append(variables["TVKD_STORE"])
    for path in paths:
        if not any(path == mount or path.startswith(f"{mount}/") for mount in mounted):
            yield f"{path or 'TVKD_API_KEY_FILE'} is on no volume"


def _references(pod: Object, known: list[Object], owner: str) -> Iterator[str]:
    claims = {
        f"{template['metadata']['name']}"
        for one in known
        for template in one.get("spec", {}).get("volumeClaimTemplates", [])
        if f"{one['kind']} {one['metadata']['name']}" == owner
    }
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for container in containers(pod):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes.keys() | claims:
                yield f"no volume {mount['name']}"
        for source in container.get("envFrom", []):
            yield from _missing(known, "Secret", source["secretRef"]["name"])
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield from _missing(known, "Secret", reference["name"], reference["key"])
        for variable in container.get("env", []):
            if variable["name"] in ("TVKD_API_KEY_FILE", "TVKD_API_KEYS"):
                key = variable["value"].rpartition("/")[2]
                yield from _missing(known, "Secret", volumes["api-key"]["secret"]["secretName"], key)
    for volume in volumes.values():
        if "secret" in volume:
            yield from _missing(known, "Secret", volume["secret"]["secretName"])
        if "configMap" in volume:
            yield from _missing(known, "ConfigMap", volume["configMap"]["name"])
        if "persistentVolumeClaim" in volume:
            yield from _missing(known, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    if "serviceAccountName" in pod:
        yield from _missing(known, "ServiceAccount", pod["serviceAccountName"])


def _missing(known: list[Object], kind: str, name: str, key: str | None = None) -> Iterator[str]:
    found = [one for one in _of(known, kind) if one["metadata"]["name"] == name]
    if not found:
        yield f"no {kind} {name}"
    elif key is not None and key not in found[0].get("data", {}):
        yield f"{kind} {name} has no {key}"


def _service(service: Object, known: list[Object]) -> Iterator[str]:
    selector = service["spec"]["selector"]
    behind = [pod for _, labels, pod in pods(known) if selector.items() <= labels.items()]
    if not behind:
        yield "selects no pod"
    for port in service["spec"]["ports"]:
        if port["port"] != PORT:
            yield f"port {port['port']} is not the server's {PORT}"
        for pod in behind:
            named = {one["name"] for container in pod["containers"] for one in container.get("ports", [])}
            if port["targetPort"] not in named:
                yield f"targetPort {port['targetPort']} is no port of its pods"


def _budget(budget: Object, known: list[Object]) -> Iterator[str]:
    if not any(_selects(budget, "selector", labels) for _, labels, _ in pods(known)):
        yield "selects no pod"
    if budget["spec"].get("maxUnavailable") != 1:
        yield "must let one pod go at a time: a budget of none blocks a node's upgrade"


def _network_policy(policy: Object, known: list[Object]) -> Iterator[str]:
    if set(policy["spec"].get("policyTypes", [])) != {"Ingress", "Egress"}:
        yield "must rule both directions"
    if not any(_selects(policy, "podSelector", labels) for _, labels, _ in pods(known)):
        yield "selects no pod"
    for rule in policy["spec"].get("ingress", []):
        if not rule.get("from"):
            yield "lets everybody in"
    ports = [
        port["port"]
        for way in ("ingress", "egress")
        for rule in policy["spec"].get(way, [])
        for port in rule.get("ports", [])
    ]
    yield from (
        f"port {port} is neither the server's, DNS's nor HTTPS'"
        for port in ports
        if port not in ("http", PORT, 53, 443)
    )


def _monitor(monitor: Object, known: list[Object]) -> Iterator[str]:
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [one for one in _of(known, "Service") if wanted <= one["metadata"]["labels"].items()]
    if not services:
        yield "selects no Service"
    named = {port["name"] for service in services for port in service["spec"]["ports"]}
    for endpoint in monitor["spec"]["endpoints"]:
        if endpoint["path"] not in PATHS:
            yield f"{endpoint['path']} is no path of the server"
        if endpoint["port"] not in named:
            yield f"{endpoint['port']} is no port of the Service"


def _alerts(rules: Object, _known: list[Object]) -> Iterator[str]:
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            yield from (f"{rule['alert']}: {fault}" for fault in query_faults(rule["expr"]))


def _scaling(scaler: Object, known: list[Object]) -> Iterator[str]:
    target = scaler["spec"]["scaleTargetRef"]
    found = [one for one in _of(known, target["kind"]) if one["metadata"]["name"] == target["name"]]
    if not found:
        yield f"no {target['kind']} {target['name']}"
    elif "replicas" in found[0]["spec"]:
        yield "its target says replicas too: each apply would undo the scaling"
    for trigger in scaler["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        yield from query_faults(query)
        if f'namespace="{_namespace(scaler)}"' not in query:
            yield f"its query is not of namespace {_namespace(scaler)}"


def _settings(config: Object, known: list[Object]) -> Iterator[str]:
    """A URL in a file that pods read leads to a Service and its port."""
    services = {
        f"{one['metadata']['name']}:{port['port']}" for one in _of(known, "Service") for port in one["spec"]["ports"]
    }
    for text in config.get("data", {}).values():
        urls = re.findall(r"^(?:teacher|teacher_reference|reference): http://(\S+)", text, re.M)
        yield from (f"{url} is no Service" for url in urls if url not in services)


def _of(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def _selects(one: Object, field: str, labels: Object) -> bool:
    return one["spec"][field].get("matchLabels", {}).items() <= labels.items()


def _namespace(one: Object) -> str | None:
    return one["metadata"].get("namespace")
