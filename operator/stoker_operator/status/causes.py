"""Why a pod does not answer: the first thing that a person can act on, from what the pod itself shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels
from stoker_operator.observed import Manifest, Node
from stoker_operator.plan.admitted import IMAGE_VOLUMES_OFF, has_model_volume
from stoker_operator.plan.groups import Group
from stoker_operator.plan.members import Member
from stoker_operator.plan.pods import gates_of
from stoker_operator.profiles import Cause, EngineProfile

# Causes that time does not heal. They come first and make a ModelDeployment Stalled.
STALLING = frozenset(
    {
        "ImagePullFailed",
        "ImageVolumesOff",
        "ChangedByAdmission",
        "ModelNotFound",
        "ModelAccessDenied",
        "DownloadFailed",
        "DiskFull",
        "UnsupportedModel",
        "InvalidModel",
        "InvalidConfig",
        "OutOfMemory",
        "ContainerCrashed",
        "EngineCrashed",
        "PodFailed",
    }
)
# Of these, ones that the next start may heal: they stall only when it did not.
_CRASHES = frozenset({"ContainerCrashed", "EngineCrashed", "PodFailed"})
_MIN_CRASHES = 2
_HEALTHY = Node()
_MEMORY_LIMITS = {labels.FETCH_CONTAINER: "spec.model.fetch.resources.limits.memory"}

_PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True, slots=True)
class PodState:
    """How far a pod has come.

    Args:
        name: of the pod.
        is_scheduled: a node was found.
        is_loaded: its engine has the model and answers.
        cause: why it does not answer; None when it does.
        num_restarts: of its container that was restarted most, or of predecessors that failed as well.
    """

    name: str
    is_scheduled: bool
    is_loaded: bool
    cause: Cause | None
    num_restarts: int = 0

    @property
    def is_stalled(self) -> bool:
        """Whether time alone will not help it."""
        if self.cause is None or self.cause.reason not in STALLING:
            return False
        return self.cause.reason not in _CRASHES or self.num_restarts >= _MIN_CRASHES


def pod_state(
    pod: Manifest,
    profile: EngineProfile,
    node: Node = _HEALTHY,
    warning: str | None = None,
    num_failures: int = 1,
) -> PodState:
    """Return how far a pod has come, and what holds it up.

    Args:
        pod: as observed.
        profile: of its engine.
        node: that it runs on.
        warning: what the kubelet says about it when it takes long to be created; "" when it says nothing.
        num_failures: pods that failed in a row, up to and with this one if it did.
    """
    status = pod.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    is_ready = conditions.get("Ready", {}).get("status") == "True"
    scheduled = conditions.get("PodScheduled", {})
    is_scheduled = scheduled.get("status") == "True" or "nodeName" in pod["spec"]
    name = pod["metadata"]["name"]
    if not node.is_ready:
        what = "does not report" if node.is_there else "is gone"
        lost = Cause("NodeNotReady", f"pod {name}: its node {pod['spec']['nodeName']} {what}")
        return PodState(name, is_scheduled, is_loaded=False, cause=lost)
    cause = None if is_ready else _cause(pod, scheduled, profile, warning)
    counts = [container.get("restartCount", 0) for container in _containers(status)]
    if cause is not None and cause.reason == "PodFailed":
        counts.append(num_failures)
    num_restarts = max(counts, default=0)
    return PodState(name, is_scheduled, is_ready or _is_started(status), cause, num_restarts)


def held_back_state(member: Member, group: Group) -> PodState:
    """Return the state of a pod that our gate keeps from nodes: what its group waits for."""
    turn = group.turn
    if turn.ahead:
        text = (
            f"group {group.name} goes to nodes after group {turn.ahead}, which does not have all of its own"
        )
        cause = Cause("WaitingForTurn", text)
    elif turn.not_before is not None:
        again = turn.not_before.strftime("%Y-%m-%dT%H:%M:%SZ")
        text = f"there were no nodes for all {group.size} pods of group {group.name}: tried again at {again}"
        cause = Cause("Unschedulable", text)
    else:
        cause = Cause("WaitingForTurn", f"group {group.name} goes to nodes when all its pods are there")
    return PodState(member.name, is_scheduled=False, is_loaded=False, cause=cause)


def first_cause(states: Iterable[PodState]) -> Cause | None:
    """Return the cause to show: one that time does not heal before one that is only progress."""
    causes = [state.cause for state in states if state.cause is not None]
    return min(causes, key=lambda cause: _URGENCY.get(cause.reason, 0), default=None)


_URGENCY = {
    "Unschedulable": 1,
    "CreateFailed": 1,
    "WaitingForTurn": 2,
    "NodeNotReady": 2,
    "PodFailed": 3,
    "NotReady": 4,
    "LoadingModel": 5,
    "DownloadingModel": 6,
    "CreatingContainer": 7,
}


def _cause(pod: Manifest, scheduled: Manifest, profile: EngineProfile, warning: str | None) -> Cause:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if not has_model_volume(pod):
        return Cause("ImageVolumesOff", f"pod {name} has no volume of its model: {IMAGE_VOLUMES_OFF}")
    # The scheduler has not looked yet at one that was let go a moment ago.
    is_old_news = scheduled.get("reason") == "SchedulingGated" and not gates_of(pod)
    if scheduled.get("status") == "False" and not is_old_news:
        return Cause("Unschedulable", f"pod {name}: {scheduled.get('message', 'no node fits')}")
    for container in _containers(status):
        cause = _container_cause(name, container, profile)
        if cause is not None:
            return cause
    if status.get("phase") == "Failed":
        text = status.get("message") or status.get("reason") or "it ended"
        return Cause("PodFailed", f"pod {name} failed: {text}")
    return _progress(name, status, warning)


def _containers(status: Manifest) -> Iterator[Manifest]:
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())


def _container_cause(pod_name: str, container: Manifest, profile: EngineProfile) -> Cause | None:
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    where = f"pod {pod_name}, container {container['name']}"
    if reason in _PULL_REASONS:
        return Cause("ImagePullFailed", f"{where}: {message or reason}")
    if reason in _CONFIG_REASONS:
        return Cause("InvalidConfig", f"{where}: {message or reason}")
    ended = state.get("terminated") or {}
    if not ended and not container.get("started"):
        # It was started again and has not answered since: what ended it last time is still the news.
        ended = container.get("lastState", {}).get("terminated") or {}
    # An engine has no reason to end, whatever status it ends with; an init container has.
    if not ended or (ended.get("exitCode") == 0 and container["name"] != labels.ENGINE_CONTAINER):
        return None
    return _ended_cause(where, container["name"], ended, profile)


def _ended_cause(where: str, container_name: str, ended: dict[str, Any], profile: EngineProfile) -> Cause:
    if ended.get("reason") == "OOMKilled":
        field = _MEMORY_LIMITS.get(container_name, "spec.pod.resources.limits.memory")
        return Cause("OutOfMemory", f"{where}: it used more memory than its limit: raise {field}")
    message = ended.get("message", "")
    told = profile.read_termination(message)
    if told is not None:
        return Cause(told.reason, f"{where}: {told.message}")
    lines = message.strip().splitlines()
    last = lines[-1] if lines else "it left no log"
    return Cause("ContainerCrashed", f"{where}: exit status {ended.get('exitCode')}: {last}")


def _progress(name: str, status: Manifest, warning: str | None) -> Cause:
    for container in status.get("initContainerStatuses", ()):
        if container["name"] == labels.FETCH_CONTAINER and "running" in container.get("state", {}):
            return Cause("DownloadingModel", f"pod {name} downloads the model")
    for container in status.get("containerStatuses", ()):
        if container["name"] == labels.ENGINE_CONTAINER and "running" in container.get("state", {}):
            if _was_ready(status, container):
                return Cause("NotReady", f"pod {name} was ready and does not answer now")
            return Cause("LoadingModel", f"pod {name} loads the model")
    if warning:
        return Cause("CreateFailed", f"pod {name}: {warning}")
    text = f"pod {name} is being created"
    if warning is not None:
        text += f", for over a minute now: `kubectl describe pod {name}` shows what it waits for"
    return Cause("CreatingContainer", text)


def _was_ready(status: Manifest, container: Manifest) -> bool:
    """Whether the pod was ready since its container started: then it became not ready later than that.

    Both times are RFC 3339 in UTC, so their text compares as they do.
    """
    changed = (
        condition.get("lastTransitionTime", "")
        for condition in status.get("conditions", ())
        if condition["type"] == "Ready"
    )
    return bool(container.get("started")) and any(
        time > container["state"]["running"].get("startedAt", "") for time in changed
    )


def _is_started(status: Manifest) -> bool:
    return any(
        container["name"] == labels.ENGINE_CONTAINER and bool(container.get("started"))
        for container in status.get("containerStatuses", ())
    )
