"""Groups as a rollout sees them: what each observed pod amounts to, without Kubernetes' spelling.

A group is one replica: pods that share the label ``stoker.dev/group``. Its leader answers HTTP, so the
leader's readiness is the group's; a group with a failed pod has failed.

Labels and annotations are anybody's to change. A pod that the Service cannot select is no replica, and what
cannot be read counts as absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from stoker_operator.api import labels
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Manifest, Node, Observed

# A kubelet that is restarted does not report for a moment, and a node's first pod may be known before it.
LOST_AFTER_S = 10.0

_HEALTHY = Node()
_GONE = Node(is_ready=False, is_there=False)
_ONE_UPDATE_S = 1.0  # between two times of one update of a status, which come in whole seconds
_MAX_DIGITS = 9  # of a count; longer ones are nobody's count


@dataclass(frozen=True, slots=True)
class PodRef:
    """Enough of a pod to act on it."""

    name: str
    uid: str


class Phase(Enum):
    """Where a group is in its life; of those that hold, the last one named here counts."""

    STARTING = "starting"  # it has not answered since its pod was made
    SILENT = (
        "silent"  # it answered, and does not now: a slow probe, or an engine that was restarted and loads
    )
    ANSWERING = "answering"  # its leader is ready
    LOST = "lost"  # a pod's node has not reported for some time or is gone: nobody knows whether it works
    DRAINING = "draining"  # its Service sends it nothing more; it finishes what it has
    FAILED = "failed"  # a pod ended for good
    TERMINATING = "terminating"  # all its pods have been deleted already


_LIVE = frozenset({Phase.STARTING, Phase.SILENT, Phase.ANSWERING})


@dataclass(frozen=True, slots=True)
class Group:
    """One replica.

    Args:
        name: the group's, which is its leader's.
        revision: what it was made from.
        phase: where it is in its life.
        members: its pods as observed, the leader first.
        pods: those that are not yet terminating.
        has_answered: its engine answered since it last (re)started, however slow it is now; one that never
            did has no requests.
        is_new: it has not answered since its pods were made.
        is_scheduled: all its pods have a node.
        is_serving: its label says that its Service may send it requests, in whatever phase it is.
        is_reachable: its nodes report, so that it can be asked.
        lost_at: when it begins to count as lost; None while its nodes report, or when nobody noted since when
            they do not.
        is_leaving: its node is cordoned.
        created_at: of its leader.
        failed_at: when it failed or got lost; created_at if nothing tells.
        num_restarts: failed predecessors in a row.
        nodes: of its pods.
        failed_on: failures of its predecessors in a row, by node, the last one last.
        avoids: nodes that it must not go to.
        draining_since: when it stopped serving; None when nobody wrote that down.
        grace_s: how long it may take to finish its requests.
        num_in_flight: requests not fully answered; None when unknown.
    """

    name: str
    revision: str
    phase: Phase
    members: tuple[Manifest, ...]
    pods: tuple[PodRef, ...]
    has_answered: bool
    is_new: bool
    is_scheduled: bool
    is_serving: bool
    is_reachable: bool
    is_leaving: bool
    created_at: datetime
    failed_at: datetime
    lost_at: datetime | None = None
    num_restarts: int = 0
    nodes: tuple[str, ...] = ()
    failed_on: Mapping[str, int] = field(default_factory=dict)
    avoids: tuple[str, ...] = ()
    draining_since: datetime | None = None
    grace_s: float = 0.0
    num_in_flight: int | None = None

    @property
    def is_live(self) -> bool:
        """Whether it counts as a replica: it exists, has neither failed nor got lost, and does not drain."""
        return self.phase in _LIVE

    @property
    def is_available(self) -> bool:
        """Whether it answers requests that come through the Service."""
        return self.phase is Phase.ANSWERING


def groups(observed: Observed, now: datetime) -> list[Group]:
    """Return the replicas of the observed ModelDeployment, oldest first."""
    found = [_group(name, pods, observed, now) for name, pods in _members(observed).items()]
    return sorted(found, key=lambda group: (group.created_at, group.name))


def replica_pods(observed: Observed) -> list[Manifest]:
    """Return the pods of all replicas.

    A pod is one that we own and that the Service would select while it serves. One that somebody took out of
    sight by its labels, to look at it in peace, has left: it keeps its name, and goes with its owner.
    """
    return [pod for pods in _members(observed).values() for pod in pods]


def is_pod_ready(pod: Manifest) -> bool:
    """Whether a pod's Ready condition holds."""
    return _condition(pod, "Ready").get("status") == "True"


def is_terminating(pod: Manifest) -> bool:
    """Whether a pod was deleted and only finishes."""
    return "deletionTimestamp" in pod["metadata"]


def node_of(pod: Manifest, nodes: Mapping[str, Node] | None) -> Node:
    """Return a pod's node; one that nobody may read, or that the pod does not have yet, counts as healthy."""
    name = pod["spec"].get("nodeName")
    return _HEALTHY if nodes is None or not name else nodes.get(name, _GONE)


def avoided_by(pod: Manifest) -> tuple[str, ...]:
    """Return the nodes that we keep a pod off."""
    text = (pod["metadata"].get("annotations") or {}).get(labels.AVOIDS, "")
    return tuple(filter(None, text.split(",")))


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time as Kubernetes writes it."""
    return datetime.fromisoformat(text)


def _members(observed: Observed) -> dict[str, list[Manifest]]:
    identity = observed.model["metadata"]
    members: dict[str, list[Manifest]] = defaultdict(list)
    for pod in observed.pods:
        own = _labels(pod)
        if is_owned_by(pod, identity["uid"]) and own.get(labels.DEPLOYMENT) == identity["name"]:
            members[own.get(labels.POD_GROUP, pod["metadata"]["name"])].append(pod)
    return {
        name: pods
        for name, pods in members.items()
        if _labels(_leader(name, pods)).get(labels.ROLE) == labels.LEADER
    }


def _leader(name: str, pods: list[Manifest]) -> Manifest:
    return next((pod for pod in pods if pod["metadata"]["name"] == name), pods[0])


def _group(name: str, pods: list[Manifest], observed: Observed, now: datetime) -> Group:
    leader = _leader(name, pods)
    metadata, own = leader["metadata"], _labels(leader)
    notes = metadata.get("annotations") or {}
    created_at = parse_time(metadata["creationTimestamp"])
    reading = observed.readings.get(metadata["uid"])
    staying = [pod for pod in pods if not is_terminating(pod)]
    nodes = [node_of(pod, observed.nodes) for pod in staying]
    silent = [node for node in nodes if not node.is_ready]
    lost_at = min((_lost_at(node) for node in silent if node.lost_since), default=None)
    is_lost = bool(silent) and (lost_at is None or lost_at <= now)
    phase = _phase(leader, staying, is_lost)
    return Group(
        name=name,
        revision=own.get(labels.REVISION, ""),
        phase=phase,
        members=(leader, *(pod for pod in pods if pod is not leader)),
        pods=tuple(PodRef(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in staying),
        has_answered=is_pod_ready(leader) or _was_started(leader),
        is_new=_is_new(leader),
        is_scheduled=all("nodeName" in pod["spec"] for pod in staying),
        is_serving=_is_serving(leader),
        is_reachable=not silent,
        is_leaving=any(not node.is_schedulable for node in nodes),
        created_at=created_at,
        failed_at=max(lost_at or created_at, created_at)
        if phase is Phase.LOST
        else max((_ended_at(pod, created_at) for pod in staying), default=created_at),
        lost_at=lost_at,
        num_restarts=_noted_count(notes.get(labels.RESTARTS, "")),
        nodes=tuple(dict.fromkeys(pod["spec"]["nodeName"] for pod in staying if "nodeName" in pod["spec"])),
        failed_on=_noted_counts(notes.get(labels.FAILED_ON, "")),
        avoids=avoided_by(leader),
        draining_since=_noted_time(notes.get(labels.DRAINING_SINCE, "")),
        grace_s=leader["spec"].get("terminationGracePeriodSeconds", 0),
        num_in_flight=reading.num_in_flight if reading else None,
    )


def _lost_at(node: Node) -> datetime:
    assert node.lost_since is not None
    return node.lost_since + timedelta(seconds=LOST_AFTER_S)


def _phase(leader: Manifest, staying: list[Manifest], is_lost: bool) -> Phase:
    if not staying:
        return Phase.TERMINATING
    if any(_has_ended(pod) for pod in staying):
        return Phase.FAILED
    if not _is_serving(leader):
        return Phase.DRAINING
    if is_lost:
        return Phase.LOST
    if is_pod_ready(leader):
        return Phase.ANSWERING
    return Phase.STARTING if _is_new(leader) else Phase.SILENT


def _is_new(pod: Manifest) -> bool:
    return not (is_pod_ready(pod) or _was_started(pod) or _was_ready(pod))


def _is_serving(pod: Manifest) -> bool:
    return _labels(pod).get(labels.SERVING) == "true"


def _labels(pod: Manifest) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _noted_count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0


def _noted_counts(text: str) -> dict[str, int]:
    pairs = (item.partition("=") for item in text.split(","))
    return {name: _noted_count(count) for name, _, count in pairs if name and _noted_count(count)}


def _noted_time(text: str) -> datetime | None:
    try:
        time = parse_time(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def _has_ended(pod: Manifest) -> bool:
    # Succeeded is no success: an engine has no reason to end.
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def _was_started(pod: Manifest) -> bool:
    return any(
        status["name"] == labels.ENGINE_CONTAINER and bool(status.get("started"))
        for status in pod.get("status", {}).get("containerStatuses", ())
    )


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


def _ended_at(pod: Manifest, otherwise: datetime) -> datetime:
    """Return when a pod ended: its last container's end, else its last change of readiness."""
    times = [
        status["state"]["terminated"].get("finishedAt")
        for status in pod.get("status", {}).get("containerStatuses", ())
        if "terminated" in status.get("state", {})
    ]
    times.append(_condition(pod, "Ready").get("lastTransitionTime"))
    return max((parse_time(time) for time in times if time), default=otherwise)


def _condition(pod: Manifest, kind: str) -> Manifest:
    conditions = pod.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == kind), {})
