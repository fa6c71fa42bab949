"""What a single pod shows in its labels, notes and status.

Labels and annotations are anybody's to change: what cannot be read counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from stoker_operator.api import labels
from stoker_operator.observed import Manifest

_ONE_UPDATE_S = 1.0  # between two times of one update of a status, which come in whole seconds
_MAX_DIGITS = 9  # of a count; longer ones are nobody's count
MAX_COUNT = 10**_MAX_DIGITS - 1


def is_pod_ready(pod: Manifest) -> bool:
    """Whether a pod's Ready condition holds."""
    return _condition(pod, "Ready").get("status") == "True"


def is_running(pod: Manifest) -> bool:
    """Whether a pod's containers have been started and it has not ended."""
    return bool(pod.get("status", {}).get("phase") == "Running")


def is_terminating(pod: Manifest) -> bool:
    """Whether a pod was deleted and only finishes."""
    return "deletionTimestamp" in pod["metadata"]


def is_evicted(pod: Manifest) -> bool:
    """Whether a pod goes because somebody asked the eviction API for it, as a node drain does."""
    target = _condition(pod, "DisruptionTarget")
    is_target = target.get("status") == "True" and target.get("reason") == "EvictionByEvictionAPI"
    return is_target and is_terminating(pod)


def is_new(pod: Manifest) -> bool:
    """Whether a pod's engine has not answered since the pod was made, for all that one can tell."""
    return not (is_pod_ready(pod) or was_started(pod) or _was_ready(pod))


def tolerates_everything(pod: Manifest) -> bool:
    """Whether no taint keeps a pod off a node, a cordon's neither."""
    return any(
        toleration.get("operator") == "Exists" and not toleration.get("key") and not toleration.get("effect")
        for toleration in pod["spec"].get("tolerations") or ()
    )


def gates_of(pod: Manifest) -> tuple[str, ...]:
    """Return the names of what keeps the scheduler from a pod."""
    return tuple(gate["name"] for gate in pod["spec"].get("schedulingGates") or ())


def labels_of(pod: Manifest) -> Mapping[str, str]:
    """Return a pod's labels."""
    return pod["metadata"].get("labels") or {}


def avoided_by(pod: Manifest) -> tuple[str, ...]:
    """Return the nodes that we keep a pod off."""
    text = (pod["metadata"].get("annotations") or {}).get(labels.AVOIDS, "")
    return tuple(filter(None, text.split(","))) if text else ()


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time as Kubernetes writes it."""
    return datetime.fromisoformat(text)


def noted_count(text: str) -> int:
    """Read a count; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0


def noted_counts(text: str) -> dict[str, int]:
    """Read "name=count,name=count"; what is none is left out."""
    if not text:
        return {}
    pairs = (item.partition("=") for item in text.split(","))
    return {name: noted_count(count) for name, _, count in pairs if name and noted_count(count)}


def noted_time(text: str) -> datetime | None:
    """Read a time with a zone; None for what is none."""
    if not text:
        return None  # as of nearly every pod, and an exception costs more than all else here
    try:
        time = parse_time(text)
    except ValueError:
        return None
    # At the ends of the calendar nothing can be added or taken off.
    return time if time.tzinfo is not None and 1 < time.year < 9999 else None


def has_ended(pod: Manifest) -> bool:
    """Whether a pod ended for good."""
    # Succeeded is no success: an engine has no reason to end.
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def was_started(pod: Manifest) -> bool:
    """Whether a pod's engine answered since its container started."""
    for status in pod.get("status", {}).get("containerStatuses", ()):
        if status["name"] == labels.ENGINE_CONTAINER and status.get("started"):
            return True
    return False


def _was_ready(pod: Manifest) -> bool:
    """Whether a pod that is not ready may have been: nobody can say that it never was.

    The kubelet writes a pod's start and its first Ready=False in one update, and the time of a condition
    moves only with its status, however often a container is restarted (updateStatusInternal of its status
    manager). So a Ready that is as old as the pod's start has never been true.
    """
    status = pod.get("status", {})
    if "startTime" not in status:
        return False  # no kubelet has taken it up
    changed = _condition(pod, "Ready").get("lastTransitionTime")
    if changed is None:
        return True
    moved_s = (parse_time(changed) - parse_time(status["startTime"])).total_seconds()
    return abs(moved_s) > _ONE_UPDATE_S


def not_ready_since(pod: Manifest) -> datetime | None:
    """Return when a pod that was ready stopped being so; None when it never was, or nothing tells."""
    changed = _condition(pod, "Ready").get("lastTransitionTime")
    return parse_time(changed) if changed and _was_ready(pod) else None


def ended_at(pod: Manifest, otherwise: datetime) -> datetime:
    """Return when a pod ended: its last container's end, else its last change of readiness."""
    times = [
        status["state"]["terminated"].get("finishedAt")
        for status in pod.get("status", {}).get("containerStatuses", ())
        if "terminated" in status.get("state", {})
    ]
    times.append(_condition(pod, "Ready").get("lastTransitionTime"))
    return max((parse_time(time) for time in times if time), default=otherwise)


def condition_times(pod: Manifest, status: str) -> list[datetime]:
    """Return since when the conditions hold that have this status."""
    conditions = pod.get("status", {}).get("conditions", ())
    times = [c.get("lastTransitionTime") for c in conditions if c.get("status") == status]
    return [parse_time(time) for time in times if time]


def _condition(pod: Manifest, kind: str) -> Manifest:
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == kind:
            found: Manifest = condition
            return found
    return {}
