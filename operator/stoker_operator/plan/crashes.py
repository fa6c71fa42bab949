"""When a pod whose engine crashes again and again is tried on another node."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stoker_operator.api import labels
from stoker_operator.observed import Manifest
from stoker_operator.profiles import EngineProfile, profile_of_pod

MAX_CRASHES = 5  # restarts without an answer; with the kubelet's back-off they take five minutes and more
SILENT_FOR_S = 600.0  # so long has one to crash that answered once, since its restarts are of all its life
MAX_FAILURES = 6  # in the row before it: three moves, after which it is more likely the model than the nodes
# What an engine says of itself that another node may heal; all else is the model's or a setting's fault.
_NODE_REASONS = frozenset({"EngineCrashed"})


def is_crash_looping(
    pod: Manifest, num_failures: int, not_ready_since: datetime | None, now: datetime
) -> bool:
    """Whether a pod that does not answer had its chances on this node.

    Args:
        pod: as observed.
        num_failures: of its predecessors in a row, on all nodes.
        not_ready_since: when it stopped being ready; None when it never was.
        now: the time.
    """
    statuses = pod.get("status", {}).get("containerStatuses", ())
    if num_failures >= MAX_FAILURES or not any(map(_is_often_restarted, statuses)):
        return False
    if not_ready_since is not None and (now - not_ready_since).total_seconds() < SILENT_FOR_S:
        return False
    return any(
        status["name"] == labels.ENGINE_CONTAINER and _keeps_crashing(status, profile_of_pod(pod))
        for status in statuses
    )


def _is_often_restarted(status: dict[str, Any]) -> bool:
    return not status.get("started") and status.get("restartCount", 0) >= MAX_CRASHES


def _keeps_crashing(status: dict[str, Any], profile: EngineProfile) -> bool:
    if not _is_often_restarted(status):
        return False
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")
    if not ended or ended.get("reason") == "OOMKilled":
        return False
    told = profile.read_termination(ended.get("message", ""))
    return told is None or told.reason in _NODE_REASONS
