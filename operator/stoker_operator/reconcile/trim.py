"""What caches keep of pods and ModelDeployments: what plans and statuses read. Pods are by far the most."""

from collections.abc import Iterable
from typing import Any

from stoker_operator.api.labels import GROUP
from stoker_operator.api.managers import replica_entries

Object = dict[str, Any]

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
)
_SPEC = ("nodeName", "schedulingGates", "tolerations", "terminationGracePeriodSeconds")
_STATUS = ("phase", "reason", "message", "conditions", "startTime", "podIP", "podIPs")
_CONTAINER_STATUS = ("name", "state", "lastState", "ready", "started", "restartCount")


def trim_model(model: Object) -> Object:
    """Return a ModelDeployment without managedFields, but for who scales it and who else sets the number."""
    metadata = {name: value for name, value in model["metadata"].items() if name != "managedFields"}
    kept = replica_entries(model["metadata"].get("managedFields") or ())
    return {**model, "metadata": {**metadata, "managedFields": kept} if kept else metadata}


def trim_pod(pod: Object) -> Object:
    """Return the part of a pod that passes read.

    Of volumes and of what mounts them there are the names; both stay or both go (`plan.admitted`).
    """
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    kept = _some(metadata, _METADATA)
    if kept.get("annotations"):
        # Networks and tools write whole documents there.
        notes = kept["annotations"].items()
        kept["annotations"] = {key: value for key, value in notes if key.startswith(f"{GROUP}/")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": kept,
        "spec": {
            **_some(spec, _SPEC),
            "volumes": [_some(volume, ("name",)) for volume in spec.get("volumes") or ()],
            "containers": [_container(container) for container in spec.get("containers") or ()],
        },
        "status": {
            **_some(status, _STATUS),
            **{
                kind: [_some(container, _CONTAINER_STATUS) for container in status[kind]]
                for kind in ("initContainerStatuses", "containerStatuses")
                if status.get(kind)
            },
        },
    }


def _container(container: Object) -> Object:
    mounts = [_some(mount, ("name",)) for mount in container.get("volumeMounts") or ()]
    return {**_some(container, ("name", "resources")), "volumeMounts": mounts}


def _some(obj: Object, names: Iterable[str]) -> Object:
    return {name: obj[name] for name in names if name in obj}
