"""What must hold at every write of the operator, whatever happens around it: checked before it is stored.

An operator cannot know what happened a moment ago. So a limit counts as kept while it was kept within the
last STALE_S seconds: of the spec as it was then, by pods that answered then. All else is exact.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fakeapi.admission import Review
from fakeapi.client import everything, get
from fakeapi.kubelet import is_serving
from fakeapi.storage import Change
from operator_world import NAME, World

from stoker_operator.api import labels, parse
from stoker_operator.api.spec import Service
from stoker_operator.desired import scale_of, wanted_replicas
from stoker_operator.plan.groups import LOST_AFTER_S
from stoker_operator.plan.successors import STRANDED_AFTER_S

Object = dict[str, Any]

SETTLED_S = Service().drain_seconds  # after which all nodes know that a pod serves no more
STALE_S = 10.0  # longest that watches and their repair leave the operator behind


@dataclass(frozen=True)
class Limits:
    """What one state of the spec asks for, from a moment on."""

    since_s: float
    least: int
    most: int


@dataclass(frozen=True)
class Load:
    """The requests of one pod.

    Args:
        since_s: when the first came.
        step_s: after how long their number changes.
        counts: requests in flight, one after another; the last number stays.
    """

    since_s: float
    step_s: float
    counts: tuple[int, ...]

    def least(self, begin_s: float, end_s: float) -> int:
        """The smallest number between two moments."""
        first, last = self._index(begin_s), self._index(end_s)
        return min(self.counts[first : last + 1])

    def _index(self, at_s: float) -> int:
        return max(0, min(int((at_s - self.since_s) / self.step_s), len(self.counts) - 1))


@dataclass
class Seen:
    """Since when a pod is what it is, in the loop's seconds."""

    is_available: bool = False
    is_up: bool = True
    changed_s: float = 0.0
    stopped_s: float | None = None
    down_s: float = float("-inf")
    hidden_s: float = float("-inf")


@dataclass
class Guard:
    """Watches over one ModelDeployment.

    Args:
        world: where it lives.
        busy: requests of pods, by uid.
        load: requests that each pod gets from the moment on in which it serves.

    Attributes:
        problems: what did not hold.
    """

    world: World
    busy: dict[str, Load] = field(default_factory=dict)
    load: Load | None = None
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._limits: list[Limits] = []
        self._seen: dict[str, Seen] = {}
        for change in self.world.api.storage.standing():
            self._note(change)
        for seen in self._seen.values():
            seen.changed_s = float("-inf")  # long ago
        self.world.api.admission.append(self._review)
        self.world.api.storage.on_change(self._note)

    # Requests.

    def send(self, uid: str) -> None:
        """A pod gets its requests from now on."""
        if self.load is not None:
            self.busy[uid] = replace(self.load, since_s=_now())

    def calm(self) -> None:
        """Nobody sends requests any more, and all are answered."""
        self.load = None
        self.busy.clear()

    def in_flight(self, uid: str) -> int:
        """Requests that a pod has; none come once it serves no more and all nodes know."""
        load, stopped_s, now = self.busy.get(uid), self._seen[uid].stopped_s, _now()
        if load is None:
            return 0
        # The operator goes by the moment in which it decided so, a bit earlier than this.
        return load.least(now if stopped_s is None else min(now, stopped_s + SETTLED_S - 0.1), now)

    def check_told(self, pod: Object) -> None:
        """A pod is told to drain: from then on it is not ready."""
        if _labels(pod).get(labels.SERVING) == "true":
            self._complain(f"{pod['metadata']['name']} is told to drain while it serves")

    # The world moves.

    def _note(self, change: Change) -> None:
        if change.plural == "modeldeployments":
            self._note_limits(change)
        elif change.plural == "pods":
            self._note_pod(change.obj, change.type == "DELETED")
        elif change.plural == "nodes" and "status" in change.obj:
            for pod in everything(self.world.api, "pods"):
                self._note_pod(pod)

    def _note_limits(self, change: Change) -> None:
        if (
            change.before is not None
            and change.type != "DELETED"
            and _asked(change.before) == _asked(change.obj)
        ):
            return  # a status
        is_there = change.type != "DELETED" and "deletionTimestamp" not in change.obj["metadata"]
        wanted, surge, unavailable = 0, 0, 0
        if is_there:
            model = parse(change.obj)
            scale = scale_of(model, wanted_replicas(model))
            wanted, surge, unavailable = scale.num_wanted, scale.max_surge, scale.max_unavailable
        limits = Limits(_now(), max(0, wanted - unavailable), wanted + surge)
        if not self._limits or (self._limits[-1].least, self._limits[-1].most) != (limits.least, limits.most):
            self._limits.append(limits)

    def _note_pod(self, pod: Object, is_gone: bool = False) -> None:
        seen = self._seen.setdefault(pod["metadata"]["uid"], Seen())
        is_up = not is_gone and self._is_up(pod)
        if not (is_up and seen.is_up):
            seen.down_s = _now()  # the moment in which it comes back is the last one of its absence
        seen.is_up = is_up
        is_available = is_up and is_serving(pod) and not _is_over(pod) and self._is_ours(pod)
        if is_available != seen.is_available:
            seen.is_available, seen.changed_s = is_available, _now()
            if is_available and pod["metadata"]["uid"] not in self.busy:
                self.send(pod["metadata"]["uid"])
        if _labels(pod).get(labels.SERVING) != "true" and seen.stopped_s is None:
            seen.stopped_s = _now()
        if not self._is_ours(pod):
            seen.hidden_s = _now()

    def _is_up(self, pod: Object) -> bool:
        return not pod["spec"].get("nodeName") or self.world.kubelet.nodes.is_up(pod)

    @staticmethod
    def _is_ours(pod: Object) -> bool:
        return _labels(pod).get(labels.DEPLOYMENT) == NAME and _labels(pod).get(labels.ROLE) == labels.LEADER

    # The operator writes.

    def _review(self, review: Review) -> None:
        if review.plural != "pods":
            return
        if review.operation == "CREATE":
            self._check_surge(review.obj)
            return
        stored = get(self.world.api, "pods", review.name, review.obj["metadata"]["namespace"])
        assert stored is not None
        if review.operation == "DELETE":
            self._check_drained(stored)
        elif _labels(review.obj).get(labels.SERVING) != "true":
            self._check_available(stored)

    def _recent(self) -> list[Limits]:
        """Every state of the spec that the operator may go by."""
        ends = [*(later.since_s for later in self._limits[1:]), float("inf")]
        return [limits for limits, end in zip(self._limits, ends, strict=True) if end >= _now() - STALE_S]

    def _check_surge(self, created: Object) -> None:
        live = [pod for pod in everything(self.world.api, "pods") if self._is_live(pod, created)]
        most = max((limits.most for limits in self._recent()), default=0)
        if len(live) + 1 > most:
            names = [pod["metadata"]["name"] for pod in live]
            self._complain(f"{created['metadata']['name']} is one too many beside {names}: {most} may be")

    def _is_live(self, pod: Object, created: Object) -> bool:
        """Whether the operator surely counts a pod as a replica, beside one that it makes."""
        metadata, seen = pod["metadata"], self._seen[pod["metadata"]["uid"]]
        is_kin = metadata.get("ownerReferences") == created["metadata"].get("ownerReferences")
        is_visible = is_kin and self._is_ours(pod) and _labels(pod).get(labels.SERVING) == "true"
        is_draining = labels.DRAINING_SINCE in (metadata.get("annotations") or {})
        is_steady = self._is_up(pod) and _now() - max(seen.down_s, seen.hidden_s) > STALE_S
        is_going = "deletionTimestamp" in metadata or is_draining or _is_over(pod) or _has_crashed(pod)
        is_placed = bool(pod["spec"].get("nodeName")) or self._age_s(pod) < STRANDED_AFTER_S
        return is_visible and is_steady and not is_going and is_placed

    def _age_s(self, pod: Object) -> float:
        created = pod["metadata"]["creationTimestamp"]
        age = self.world.clock() - datetime.fromisoformat(created)
        return age.total_seconds()

    def _check_available(self, stopped: Object) -> None:
        uid, now = stopped["metadata"]["uid"], _now()
        seen = self._seen[uid]
        if not seen.is_available or now - seen.changed_s < STALE_S:
            return  # it answers nobody, or got ready a moment ago
        others = sum(
            other.is_available or now - other.changed_s <= STALE_S + LOST_AFTER_S
            for key, other in self._seen.items()
            if key != uid and other.stopped_s is None
        )
        least = min((limits.least for limits in self._recent()), default=0)
        if others < least:
            self._complain(f"{stopped['metadata']['name']} stops, {others} others answer, {least} have to")

    def _check_drained(self, pod: Object) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        seen, now = self._seen[uid], _now()
        if "deletionTimestamp" in pod["metadata"] or not self._is_up(pod) or _is_over(pod):
            return
        if seen.is_available and now - seen.changed_s >= STALE_S:
            self._complain(f"{name} is deleted while it serves")
        drained_s = 0.0 if seen.stopped_s is None else now - seen.stopped_s
        is_late = drained_s >= pod["spec"]["terminationGracePeriodSeconds"] - 1.0  # times are whole seconds
        is_lost = now - seen.down_s <= STALE_S
        num_busy = self.in_flight(uid)
        if num_busy and not is_late and not is_lost and _is_started(pod):
            self._complain(f"{name} is deleted after {drained_s:.1f} s with {num_busy} requests in flight")

    def _complain(self, text: str) -> None:
        self.problems.append(f"at {_now():.2f} s: {text}")


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0  # a world that is being built


def _asked(model: Object) -> tuple[int, Any]:
    """What a user may change of a ModelDeployment."""
    return model["metadata"]["generation"], model["metadata"].get("deletionTimestamp")


def _labels(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _is_over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _containers(pod: Object) -> list[Object]:
    return (pod.get("status") or {}).get("containerStatuses") or []


def _has_crashed(pod: Object) -> bool:
    return any(container.get("restartCount") for container in _containers(pod))


def _is_started(pod: Object) -> bool:
    return any(container.get("started") for container in _containers(pod))
