"""Many settled ModelDeployments with their children, copies of one that the operator brought to rest."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fakeapi.client import everything
from fakeapi.fields import merge
from fakeapi.storage import Storage
from operator_world import CONFIG, World
from virtual_time import run_virtual

from stoker_operator.api import parse
from stoker_operator.api.labels import APPLIED_HASH
from stoker_operator.desired import desired, wanted_replicas
from stoker_operator.desired.children import BUDGET, SERVICE

Object = dict[str, Any]

TEMPLATE = "model-00000"
KINDS = ("modeldeployments", "controllerrevisions", "services", "poddisruptionbudgets", "pods")
PODS_PER_NODE = 50


def populated(num_models: int, pods_each: int) -> Storage:
    """Return a cluster in which nothing is left to do.

    Args:
        num_models: ModelDeployments.
        pods_each: ready pods of each.
    """
    rng = random.Random(0)
    source = _settled(pods_each)
    result = Storage(lambda: datetime.now(UTC))
    objects = {plural: everything(source.api, plural) for plural in KINDS}
    (node,) = everything(source.api, "nodes")
    num_nodes = max(1, num_models * pods_each // PODS_PER_NODE)
    for number in range(num_nodes):
        result.restore("nodes", renamed(node, {"node-0": f"node-{number}"}))
    uids = [obj["metadata"]["uid"] for plural in KINDS for obj in objects[plural]]
    for number in range(num_models):
        names = {TEMPLATE: f"model-{number:05d}"} | {uid: _uid(rng) for uid in uids}
        names |= _hashes(objects, names)
        for plural in KINDS:
            for index, obj in enumerate(objects[plural]):
                node_name = f"node-{(number * pods_each + index) % num_nodes}"
                clone = renamed(obj, {**names, "node-0": node_name})
                result.restore(plural, as_stored(clone) if plural == "pods" else clone)
    return result


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return the same with other names in its texts; what has none of them is shared, not copied."""
    if isinstance(value, str):
        for old, new in names.items():
            if old in value:
                value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        items = {key: renamed(item, names) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    if isinstance(value, list):
        found = [renamed(item, names) for item in value]
        return value if all(new is old for new, old in zip(found, value, strict=True)) else found
    return value


def as_stored(pod: Object) -> Object:
    """Return a pod with what API server, scheduler and kubelet add to it: most of its bytes."""
    return {
        **pod,
        "metadata": {**pod["metadata"], "managedFields": _MANAGED_FIELDS},
        "spec": merge(pod["spec"], _SPEC),
        "status": merge(pod["status"], _STATUS),
    }


def pod_kib(storage: Storage) -> float:
    """Size of a stored pod, as JSON, KiB."""
    return round(len(json.dumps(next(storage.all("pods")))) / 1024, 1)


def _settled(pods_each: int) -> World:
    world = World()

    async def settle() -> None:
        async with world.running():
            world.apply(TEMPLATE, replicas=pods_each)
            await world.ready(TEMPLATE)
            await world.settled(10.0)

    run_virtual(settle())
    return world


def _hashes(objects: Mapping[str, list[Object]], names: Mapping[str, str]) -> dict[str, str]:
    """What marks the applied manifests of one as unchanged, by what marks those of the template."""
    (model,) = objects["modeldeployments"]
    parsed = parse(renamed(model, names))
    wanted = desired(parsed, CONFIG, wanted_replicas(parsed))
    applied = {
        "services": wanted.child(SERVICE) or {},
        "poddisruptionbudgets": wanted.child(BUDGET) or {},
    }

    def mark(obj: Object) -> str:
        return str(obj["metadata"]["annotations"][APPLIED_HASH])

    return {mark(objects[plural][0]): mark(manifest) for plural, manifest in applied.items()}


def _uid(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


_SPEC: Object = {
    "dnsPolicy": "ClusterFirst",
    "preemptionPolicy": "PreemptLowerPriority",
    "priority": 0,
    "schedulerName": "default-scheduler",
    "serviceAccount": "default",
    "serviceAccountName": "default",
    "tolerations": [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 300,
        }
        for key in ("not-ready", "unreachable")
    ],
}
_SINCE = "2026-01-01T00:00:10Z"
_STATUS: Object = {
    "hostIP": "10.0.0.1",
    "hostIPs": [{"ip": "10.0.0.1"}],
    "qosClass": "Burstable",
    "startTime": _SINCE,
    "conditions": [
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": _SINCE}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ],
}


def _fields(depth: int) -> Object:
    return {} if depth == 0 else {f"f:field{number}": _fields(depth - 1) for number in range(5)}


_MANAGED_FIELDS: list[Object] = [
    {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": _SINCE,
        "fieldsType": "FieldsV1",
        "fieldsV1": _fields(depth),
    }
    for manager, depth in (("stoker-operator", 3), ("kubelet", 3))
]
