"""Groups as a rollout sees them: what each should be, and what the observed pods of it amount to.

A group is one replica: as many pods as its revision's record says, with the label ``stoker.dev/group``. Rank
0 leads: it answers HTTP, and while the others run its readiness is the group's. What happens to one member
happens to the group: it has failed once a pod ended, or is missing after the group may have started.

Labels and annotations are anybody's to change: what cannot be read counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from stoker_operator.api import labels
from stoker_operator.desired.record import recorded_size
from stoker_operator.observed import Manifest, Node, Observed, Turn
from stoker_operator.plan.admitted import has_model_volume
from stoker_operator.plan.crashes import is_crash_looping
from stoker_operator.plan.members import Member, is_whole, members_by_group, noted_size
from stoker_operator.plan.ownership import is_ours
from stoker_operator.plan.pods import (
    avoided_by,
    ended_at,
    gates_of,
    has_ended,
    is_new,
    is_pod_ready,
    is_running,
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
_ANY_TIME = Turn()
_GONE = Node(is_ready=False, is_there=False)


class Phase(Enum):
    """Where a group is in its life; of those that hold, the last one named here counts."""

    GATED = "gated"  # a pod of it may not go to a node yet: the group is not whole, or waits for its turn
    STARTING = "starting"  # it has not answered since its pods were made
    # It answered, and does not now: a slow probe, or an engine that was restarted and loads.
    SILENT = "silent"
    ANSWERING = "answering"  # its leader is ready, and all its pods run
    LOST = "lost"  # a pod's node has not reported for some time or is gone: nobody knows whether it works
    DRAINING = "draining"  # its Service sends it nothing more; it finishes what it has
    # A pod ended for good, is missing, or crashed so often that it is tried elsewhere.
    FAILED = "failed"
    TERMINATING = "terminating"  # all its pods have been deleted already


_COMING = frozenset({Phase.GATED, Phase.STARTING})
_LIVE = _COMING | {Phase.SILENT, Phase.ANSWERING}


@dataclass(frozen=True, slots=True)
class Group:
    """One replica.

    Args:
        name: the group's.
        revision: what it was made from.
        size: pods that it should have.
        phase: where it is in its life.
        members: its pods as observed, by rank; there may be gaps, and two that claim one rank.
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
        is_held_back: our gate keeps all its pods from nodes, so that it may still be made whole.
        turn: of several pods: where it stands among those that compete with it.
        let_go_at: of several pods: when the last of them was let go; None before, or when nobody noted it.
        num_turns: of its predecessors in a row that found no nodes for all their pods.
        created_at: of its first pod.
        failed_at: when it failed or got lost; created_at if nothing tells.
        num_restarts: failed predecessors in a row.
        nodes: of its pods.
        failed_on: failures of its predecessors in a row, by node, the last one last.
        avoids: nodes that it must not go to.
        successor_of: the failed group of several whose place it took.
        draining_since: when it stopped serving; None when nobody wrote that down.
        grace_s: how long it may take to finish its requests.
        num_in_flight: requests not fully answered; None when unknown.
        read_at: when it was asked for them.
    """

    name: str
    revision: str
    size: int
    phase: Phase
    members: tuple[Member, ...]
    has_answered: bool
    is_new: bool
    is_crash_looping: bool
    is_scheduled: bool
    is_serving: bool
    is_reachable: bool
    is_leaving: bool
    is_held_back: bool
    created_at: datetime
    failed_at: datetime
    lost_at: datetime | None = None
    turn: Turn = _ANY_TIME
    let_go_at: datetime | None = None
    num_turns: int = 0
    num_restarts: int = 0
    nodes: tuple[str, ...] = ()
    failed_on: Mapping[str, int] = field(default_factory=dict)
    avoids: tuple[str, ...] = ()
    successor_of: str = ""
    draining_since: datetime | None = None
    grace_s: float = 0.0
    num_in_flight: int | None = None
    read_at: datetime | None = None

    @property
    def leader(self) -> Member | None:
        """Its first pod; None when that is missing, which only happens to groups of several."""
        return next((member for member in self.members if member.rank == 0), None)

    @property
    def staying(self) -> tuple[Member, ...]:
        """Its pods that nobody has deleted."""
        return tuple(member for member in self.members if member.is_staying)

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that it should have and lacks."""
        ranks = {member.rank for member in self.staying}
        return tuple(rank for rank in range(self.size) if rank not in ranks)

    @property
    def is_over(self) -> bool:
        """Whether it had its turn and found no nodes for all its pods."""
        return self.turn.is_over and self.is_live and not self.is_available

    @property
    def is_coming(self) -> bool:
        """Whether it counts as a replica that has not answered yet."""
        return self.phase in _COMING

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
    sizes = {
        labels_of(stored).get(labels.REVISION, ""): recorded_size(stored)
        for stored in observed.revisions
        if is_ours(stored, observed.model)
    }
    found = [
        _group(name, members, sizes, observed, now) for name, members in members_by_group(observed).items()
    ]
    return sorted(found, key=lambda group: (group.created_at, group.name))


def replica_pods(observed: Observed) -> list[Manifest]:
    """Return the pods of all replicas."""
    return [member.pod for members in members_by_group(observed).values() for member in members]


def node_of(pod: Manifest, nodes: Mapping[str, Node] | None) -> Node:
    """Return a pod's node; one that nobody may read, or that the pod does not have yet, counts as healthy."""
    name = pod["spec"].get("nodeName")
    return _HEALTHY if nodes is None or not name else nodes.get(name, _GONE)


def _group(
    name: str, members: tuple[Member, ...], sizes: Mapping[str, int], observed: Observed, now: datetime
) -> Group:
    first = members[0]
    own, notes = labels_of(first.pod), first.pod["metadata"].get("annotations") or {}
    revision = own.get(labels.REVISION, "")
    # A record that is gone says nothing; then the pods' own label has to do.
    size = sizes.get(revision) or noted_size(first.pod) or 1
    created_at = parse_time(first.pod["metadata"]["creationTimestamp"])
    staying = [member.pod for member in members if member.is_staying]
    nodes = [node_of(pod, observed.nodes) for pod in staying]
    silent = [node for node in nodes if not node.is_ready]
    lost_at = min((_lost_at(node) for node in silent if node.lost_since), default=None)
    is_lost = bool(silent) and (lost_at is None or lost_at <= now)
    failed_on = noted_counts(notes.get(labels.FAILED_ON, ""))
    is_led, is_ready = first.rank == 0, is_pod_ready(first.pod)
    is_serving = is_led and _is_serving(first.pod)
    # Most pods are ready, and of those the rest need not be looked at.
    is_crashing = (is_led and not is_ready) and is_crash_looping(
        first.pod, sum(failed_on.values()), not_ready_since(first.pod), now
    )
    is_held_back = size > 1 and all(member.is_held_back and member.is_staying for member in members)
    phase = (
        _end(members, staying, is_held_back, is_serving)
        or (None if is_whole(members, size) else Phase.FAILED)
        or _life(members, is_lost, is_ready, is_crashing)
    )
    reading = observed.readings.get(first.uid) if is_led else None
    return Group(
        name=name,
        revision=revision,
        size=size,
        phase=phase,
        members=members,
        has_answered=is_led and (is_ready or was_started(first.pod)),
        is_new=not is_ready and is_new(first.pod),
        is_crash_looping=is_crashing,
        is_scheduled=all("nodeName" in pod["spec"] for pod in staying),
        is_serving=is_serving,
        is_reachable=not silent,
        is_leaving=any(node.is_leaving for node in nodes),
        is_held_back=is_held_back,
        created_at=created_at,
        failed_at=_failed_at(phase, staying, created_at, lost_at),
        lost_at=lost_at,
        turn=observed.turns.get(name, _ANY_TIME),
        let_go_at=None if size == 1 else max(filter(None, map(_let_go_at, staying)), default=None),
        num_turns=noted_count(notes.get(labels.TURNS, "")),
        num_restarts=noted_count(notes.get(labels.RESTARTS, "")),
        nodes=tuple(dict.fromkeys(pod["spec"]["nodeName"] for pod in staying if "nodeName" in pod["spec"])),
        failed_on=failed_on,
        avoids=avoided_by(first.pod),
        successor_of=notes.get(labels.SUCCESSOR_OF, ""),
        draining_since=noted_time(notes.get(labels.DRAINING_SINCE, "")),
        grace_s=first.pod["spec"].get("terminationGracePeriodSeconds", 0),
        num_in_flight=reading.num_in_flight if reading else None,
        read_at=reading.read_at if reading else None,
    )


def _let_go_at(pod: Manifest) -> datetime | None:
    return noted_time((pod["metadata"].get("annotations") or {}).get(labels.LET_GO_AT, ""))


def _lost_at(node: Node) -> datetime:
    assert node.lost_since is not None
    return node.lost_since + timedelta(seconds=LOST_AFTER_S)


def _failed_at(
    phase: Phase, staying: list[Manifest], created_at: datetime, lost_at: datetime | None
) -> datetime:
    if phase is Phase.ANSWERING:
        return created_at
    if phase is Phase.LOST:
        return max(lost_at or created_at, created_at)
    return max((ended_at(pod, created_at) for pod in staying), default=created_at)


def _end(
    members: tuple[Member, ...], staying: list[Manifest], is_held_back: bool, is_serving: bool
) -> Phase | None:
    """Return where a group is that has begun to end, or that has not begun; None of others."""
    if not staying:
        return Phase.TERMINATING
    if any(has_ended(pod) or not has_model_volume(pod) for pod in staying):
        return Phase.FAILED
    if is_held_back:
        return Phase.GATED
    if members[0].rank != 0:
        return Phase.FAILED
    return None if is_serving else Phase.DRAINING


def _life(members: tuple[Member, ...], is_lost: bool, is_ready: bool, is_crashing: bool) -> Phase:
    """Return where a whole group is that serves."""
    if is_lost:
        return Phase.LOST
    if any(gates_of(member.pod) for member in members):
        return Phase.GATED
    if is_ready and all(is_running(member.pod) for member in members if member.rank):
        return Phase.ANSWERING
    if is_crashing:
        return Phase.FAILED
    return Phase.STARTING if is_new(members[0].pod) else Phase.SILENT


def _is_serving(pod: Manifest) -> bool:
    # A drain is not taken back: an engine that was told is not ready any more, whatever its label says.
    notes = pod["metadata"].get("annotations") or {}
    is_draining = noted_time(notes.get(labels.DRAINING_SINCE, "")) is not None
    return labels_of(pod).get(labels.SERVING) == "true" and not is_draining
