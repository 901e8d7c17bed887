"""Whether objects fit their kinds' schemas: Kubernetes' own, strictly, in the oldest and newest version supported."""

from typing import Any

import kubernetes_validate
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from policy import pods
from pydantic import ValidationError

VERSIONS = ("1.30", "1.37")
_CUSTOM = {
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": prometheus.ServiceMonitor,
    "PrometheusRule": prometheus.PrometheusRule,
}
# No package carries LeaderWorkerSet's schema: its own fields by name, its pods by theirs.
_GROUP = {
    "spec": {"replicas", "leaderWorkerTemplate", "rolloutStrategy", "startupPolicy", "networkConfig"},
    "leaderWorkerTemplate": {
        "leaderTemplate", "workerTemplate", "size", "restartPolicy", "subGroupPolicy", "volumeClaimTemplates",
        "persistentVolumeClaimRetentionPolicy",
    },
}  # fmt: skip


def schema_faults(objects: list[dict[str, Any]]) -> list[str]:
    return [f"{one['kind']} {one['metadata']['name']}: {fault}" for one in objects for fault in _faults(one)]


def _faults(one: dict[str, Any]) -> list[str]:
    if one["kind"] in _CUSTOM:
        try:
            read = _CUSTOM[one["kind"]].model_validate(one)
        except ValidationError as error:
            return [str(error)]
        # These models pass over a field that they do not know: it is missing when they write what they read.
        return _lost(one, read.model_dump(mode="json", by_alias=True, exclude_unset=True), "")
    if one["kind"] == "LeaderWorkerSet":
        spec = one["spec"]
        unknown = (spec.keys() - _GROUP["spec"]) | (
            spec["leaderWorkerTemplate"].keys() - _GROUP["leaderWorkerTemplate"]
        )
        members = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "member", "labels": labels}, "spec": pod}
            for _, labels, pod in pods([one])
        ]
        return [f"no field {name}" for name in unknown] + schema_faults(members)
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")
    return found


def _lost(written: Any, read: Any, where: str) -> list[str]:
    if isinstance(written, dict):
        absent = [f"no field {where}.{name}" for name in written if name not in read]
        return absent + [
            fault
            for name in written.keys() & read.keys()
            for fault in _lost(written[name], read[name], f"{where}.{name}")
        ]
    if isinstance(written, list):
        return [fault for a, b in zip(written, read, strict=True) for fault in _lost(a, b, f"{where}[]")]
    return []
