"""Pods that take long to be created: what holds them up stands in Events of the kubelet, not in the pod."""

from __future__ import annotations

from datetime import datetime

from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.groups import replica_pods
from stoker_operator.plan.pods import is_terminating, parse_time

SLOW_S = 60.0


def longest_creating(observed: Observed) -> Manifest | None:
    """Return the pod that has waited longest for its containers to be created, if any does."""
    if not any(map(_is_creating, observed.pods)):
        return None  # as nearly always
    waiting = filter(_is_creating, replica_pods(observed))
    return min(waiting, key=creating_since, default=None)


def creating_since(pod: Manifest) -> datetime:
    """Return when a pod came to its node."""
    times = [
        condition.get("lastTransitionTime")
        for condition in pod.get("status", {}).get("conditions", ())
        if condition["type"] == "PodScheduled"
    ]
    return parse_time(next(filter(None, times), pod["metadata"]["creationTimestamp"]))


def _is_creating(pod: Manifest) -> bool:
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or "nodeName" not in pod["spec"]:
        return False
    states = [
        container.get("state", {})
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in status.get(kind, ())
    ]
    has_begun = any("running" in state or "terminated" in state for state in states)
    return not has_begun and not is_terminating(pod)
