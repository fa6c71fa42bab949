"""How a node says that it is about to go: what autoscalers, clouds and maintenance write on it. Pure.

Not in the table, because the node may well stay:

- a cordon (spec.unschedulable), whose meaning the operator's settings decide;
- `DeletionCandidateOfClusterAutoscaler`, which cluster-autoscaler takes back when the node is needed, and
  other taints with the effect PreferNoSchedule, such as `UpdateInProgress` of OpenShift;
- `node.kubernetes.io/not-ready` and `unreachable`: a node that does not report is another matter, see groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Place(Enum):
    """Where a sign stands on a node."""

    TAINT = "taint"
    ANNOTATION = "annotation"
    LABEL = "label"
    CONDITION = "condition"


@dataclass(frozen=True, slots=True)
class Sign:
    """Something on a node that says that its pods have to leave.

    Args:
        place: where it stands.
        key: of the taint, annotation or label; type of the condition, which must be True.
        who: writes it.
        source: where that is said.
        values: what its value begins with, of a condition its message; empty for any.
        is_of_cordoned: it means something only on a node that is cordoned as well.
    """

    place: Place
    key: str
    who: str
    source: str
    values: tuple[str, ...] = ()
    is_of_cordoned: bool = False


_WELL_KNOWN = "https://kubernetes.io/docs/reference/labels-annotations-taints/"
_KARPENTER = "https://karpenter.sh/docs/concepts/disruption/"
_CLUSTER_AUTOSCALER = (
    "https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/utils/taints/taints.go"
)
_AWS = "https://github.com/aws/aws-node-termination-handler/blob/main/pkg/node/node.go"
_GKE = "https://cloud.google.com/kubernetes-engine/docs/concepts/handle-disruption-gpu-tpu"
_AKS_DRAIN = "https://learn.microsoft.com/azure/aks/node-auto-drain"
_AKS_PROBLEMS = "https://learn.microsoft.com/azure/aks/node-problem-detector"
_OPENSHIFT = (
    "https://github.com/openshift/machine-config-operator/blob/master/pkg/daemon/constants/constants.go"
)
_MEDIK8S = "https://github.com/medik8s/node-maintenance-operator/blob/main/controllers/taint.go"
_KURED = "https://kured.dev/docs/configuration/"
_NVIDIA = "https://docs.nvidia.com/datacenter/cloud-native/gpu-operator/latest/gpu-driver-upgrades.html"


def _taint(key: str, who: str, source: str) -> Sign:
    return Sign(Place.TAINT, key, who, source)


_AWS_EVENTS = ("spot-itn", "scheduled-maintenance", "asg-lifecycle-termination", "rebalance-recommendation")

SIGNS = (
    _taint("karpenter.sh/disrupted", "Karpenter from 1.0", _KARPENTER),
    _taint("karpenter.sh/disruption", "Karpenter 0.32 to 0.37", _KARPENTER),
    _taint("ToBeDeletedByClusterAutoscaler", "cluster-autoscaler", _CLUSTER_AUTOSCALER),
    _taint("node.kubernetes.io/out-of-service", "an administrator, of a machine that is off", _WELL_KNOWN),
    _taint("node.cloudprovider.kubernetes.io/shutdown", "the cloud's node controller", _WELL_KNOWN),
    *(
        _taint(f"aws-node-termination-handler/{event}", "AWS' node termination handler", _AWS)
        for event in _AWS_EVENTS
    ),
    _taint("cloud.google.com/impending-node-termination", "GKE, of GPU and TPU nodes", _GKE),
    _taint("remediator.kubernetes.azure.com/unschedulable", "AKS, of what it drains or repairs", _AKS_DRAIN),
    _taint("remediator.aks.microsoft.com/unschedulable", "AKS before", _AKS_DRAIN),
    Sign(Place.CONDITION, "PreemptScheduled", "AKS, of spot nodes", _AKS_PROBLEMS),
    Sign(Place.CONDITION, "TerminateScheduled", "AKS", _AKS_PROBLEMS),
    Sign(Place.CONDITION, "RedeployScheduled", "AKS", _AKS_PROBLEMS),
    Sign(Place.CONDITION, "VMEventScheduled", "AKS, of spot nodes", _AKS_PROBLEMS, ("Preempt Scheduled",)),
    Sign(
        Place.ANNOTATION,
        "machineconfiguration.openshift.io/desiredDrain",
        "OpenShift's machine-config-operator",
        _OPENSHIFT,
        ("drain-",),
    ),
    _taint("medik8s.io/drain", "medik8s' node maintenance operator", _MEDIK8S),
    # kured writes it on each node that wants a reboot, hours before its turn comes.
    Sign(
        Place.ANNOTATION,
        "weave.works/kured-reboot-in-progress",
        "kured with --annotate-nodes",
        _KURED,
        is_of_cordoned=True,
    ),
    Sign(
        Place.LABEL,
        "nvidia.com/gpu-driver-upgrade-state",
        "NVIDIA's GPU operator",
        _NVIDIA,
        ("pod-deletion-required", "drain-required"),
        is_of_cordoned=True,
    ),
    _taint("stoker.dev/drain", "you, to say it to Stoker alone", "docs/operations.md"),
)


def departure(node: Mapping[str, Any]) -> str:
    """Return what says that a node is about to go, "" when it stays.

    Args:
        node: as the API server has it.
    """
    if "deletionTimestamp" in node["metadata"]:
        return "its deletion"
    is_cordoned = bool((node.get("spec") or {}).get("unschedulable"))
    written = {(place, key): value for place, key, value in _written(node)}
    for sign in SIGNS:
        value = written.get((sign.place, sign.key))
        if value is None or (sign.is_of_cordoned and not is_cordoned):
            continue
        if not sign.values or value.startswith(sign.values):
            return f"{sign.place.value} {sign.key}"
    return ""


def _written(node: Mapping[str, Any]) -> Iterator[tuple[Place, str, str]]:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    for key, value in (metadata.get("annotations") or {}).items():
        yield Place.ANNOTATION, key, value
    for key, value in (metadata.get("labels") or {}).items():
        yield Place.LABEL, key, value
    for taint in spec.get("taints") or ():
        yield Place.TAINT, taint["key"], taint.get("value") or ""
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True":
            yield Place.CONDITION, condition["type"], condition.get("message") or ""
