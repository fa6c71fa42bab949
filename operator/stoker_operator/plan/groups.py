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
from stoker_operator.observed import Manifest, Node, Observed
from stoker_operator.plan.admitted import has_model_volume
from stoker_operator.plan.crashes import is_crash_looping
from stoker_operator.plan.ownership import is_ours
from stoker_operator.plan.pods import (
    avoided_by,
    ended_at,
    has_ended,
    is_new,
    is_pod_ready,
    is_terminating,
    labels_of,
    not_ready_since,
    noted_count,
    noted_counts,
    noted_time,
    parse_time,
    was_started,
)

# A kubelet that is restarted does not report for a moment, and a node's first pod may be known before it.
LOST_AFTER_S = 10.0

_HEALTHY = Node()
_GONE = Node(is_ready=False, is_there=False)


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
    FAILED = "failed"  # a pod ended for good, or crashed so often that it is tried elsewhere
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
        is_crash_looping: it failed by crashing again and again.
        is_scheduled: all its pods have a node.
        is_serving: its Service may send requests to it, in whatever phase it is.
        is_reachable: its nodes report, so that it can be asked.
        lost_at: when it begins to count as lost; None while its nodes report, or when nobody noted since when
            they do not.
        is_leaving: its node is on its way out.
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
    is_crash_looping: bool
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

    A pod is one that we own, or will once it is adopted, and that the Service would select while it serves.
    One that somebody took out of sight by its labels, to look at it in peace, has left: it keeps its name,
    and goes with its owner.
    """
    return [pod for pods in _members(observed).values() for pod in pods]


def node_of(pod: Manifest, nodes: Mapping[str, Node] | None) -> Node:
    """Return a pod's node; one that nobody may read, or that the pod does not have yet, counts as healthy."""
    name = pod["spec"].get("nodeName")
    return _HEALTHY if nodes is None or not name else nodes.get(name, _GONE)


def _members(observed: Observed) -> dict[str, list[Manifest]]:
    name = observed.model["metadata"]["name"]
    members: dict[str, list[Manifest]] = defaultdict(list)
    for pod in observed.pods:
        own = labels_of(pod)
        if is_ours(pod, observed.model) and own.get(labels.DEPLOYMENT) == name:
            members[own.get(labels.POD_GROUP, pod["metadata"]["name"])].append(pod)
    return {
        name: pods
        for name, pods in members.items()
        if labels_of(_leader(name, pods)).get(labels.ROLE) == labels.LEADER
    }


def _leader(name: str, pods: list[Manifest]) -> Manifest:
    return next((pod for pod in pods if pod["metadata"]["name"] == name), pods[0])


def _group(name: str, pods: list[Manifest], observed: Observed, now: datetime) -> Group:
    leader = _leader(name, pods)
    metadata, own = leader["metadata"], labels_of(leader)
    notes = metadata.get("annotations") or {}
    created_at = parse_time(metadata["creationTimestamp"])
    reading = observed.readings.get(metadata["uid"])
    staying = [pod for pod in pods if not is_terminating(pod)]
    nodes = [node_of(pod, observed.nodes) for pod in staying]
    silent = [node for node in nodes if not node.is_ready]
    lost_at = min((_lost_at(node) for node in silent if node.lost_since), default=None)
    is_lost = bool(silent) and (lost_at is None or lost_at <= now)
    failed_on = noted_counts(notes.get(labels.FAILED_ON, ""))
    is_crashing = is_crash_looping(leader, sum(failed_on.values()), not_ready_since(leader), now)
    phase = _phase(leader, staying, is_lost, is_crashing)
    return Group(
        name=name,
        revision=own.get(labels.REVISION, ""),
        phase=phase,
        members=(leader, *(pod for pod in pods if pod is not leader)),
        pods=tuple(PodRef(pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in staying),
        has_answered=is_pod_ready(leader) or was_started(leader),
        is_new=is_new(leader),
        is_crash_looping=is_crashing,
        is_scheduled=all("nodeName" in pod["spec"] for pod in staying),
        is_serving=_is_serving(leader),
        is_reachable=not silent,
        is_leaving=any(node.is_leaving for node in nodes),
        created_at=created_at,
        failed_at=max(lost_at or created_at, created_at)
        if phase is Phase.LOST
        else max((ended_at(pod, created_at) for pod in staying), default=created_at),
        lost_at=lost_at,
        num_restarts=noted_count(notes.get(labels.RESTARTS, "")),
        nodes=tuple(dict.fromkeys(pod["spec"]["nodeName"] for pod in staying if "nodeName" in pod["spec"])),
        failed_on=failed_on,
        avoids=avoided_by(leader),
        draining_since=noted_time(notes.get(labels.DRAINING_SINCE, "")),
        grace_s=leader["spec"].get("terminationGracePeriodSeconds", 0),
        num_in_flight=reading.num_in_flight if reading else None,
    )


def _lost_at(node: Node) -> datetime:
    assert node.lost_since is not None
    return node.lost_since + timedelta(seconds=LOST_AFTER_S)


def _phase(leader: Manifest, staying: list[Manifest], is_lost: bool, is_crashing: bool) -> Phase:
    if not staying:
        return Phase.TERMINATING
    if any(has_ended(pod) or not has_model_volume(pod) for pod in staying):
        return Phase.FAILED
    if not _is_serving(leader):
        return Phase.DRAINING
    if is_lost:
        return Phase.LOST
    if is_pod_ready(leader):
        return Phase.ANSWERING
    if is_crashing:
        return Phase.FAILED
    return Phase.STARTING if is_new(leader) else Phase.SILENT


def _is_serving(pod: Manifest) -> bool:
    # A drain is not taken back: an engine that was told is not ready any more, whatever its label says.
    notes = pod["metadata"].get("annotations") or {}
    is_draining = noted_time(notes.get(labels.DRAINING_SINCE, "")) is not None
    return labels_of(pod).get(labels.SERVING) == "true" and not is_draining
