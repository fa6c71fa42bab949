"""A tiny cluster that carries out plans: an API server, a kubelet that others move, and a cache that lags.

The cache is a copy of the API server's objects that follows only when told to, but always holds what the
operator's own writes returned, as the informers' stores do. Every action is checked on its way in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from operator_builders import NOW, make_model, pod_status, stored, timestamp, wanted_of, with_size

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.observed import Node, Observed, Reading
from stoker_operator.plan import Action, Apply, Create, Delete, Patch, Plan, Purpose, plan
from stoker_operator.plan.groups import LOST_AFTER_S
from stoker_operator.plan.pods import avoided_by
from stoker_operator.plan.successors import STRANDED_AFTER_S

Object = dict[str, Any]

MIN_SETTLE = timedelta(seconds=2)  # how long nodes may go on sending requests to a pod that stopped serving


class ClusterModel:
    """One ModelDeployment, its children and two or more nodes."""

    def __init__(
        self,
        nodes: tuple[str, ...] = ("node-a", "node-b"),
        slots: int | None = None,
        size: int = 1,
        **spec: Any,
    ) -> None:
        self.now: datetime = NOW
        self.model = make_model(**spec)
        self.pods: dict[str, Object] = {}
        self.service: Object | None = None
        self.budget: Object | None = None
        self.records: dict[str, Object] = {}
        self.cached_records: dict[str, Object] = {}
        self.nodes = {name: Node() for name in nodes}
        self.slots = slots  # pods that a node has room for; None for any number
        self.size = size  # pods of a group
        self.answered: set[str] = set()  # uids of pods whose engine answered once
        self.in_flight: dict[str, int] = {}  # by uid
        self.broken: set[str] = set()  # revisions whose engines never get ready
        self.is_broken: Callable[[Object], bool] = lambda pod: revision_of(pod) in self.broken
        self.is_violated = False
        self._num_created = 0
        self.cached_model: Object = {}
        self.cached_pods: dict[str, Object] = {}
        self.cached_nodes: dict[str, Node] = {}
        self.sync()

    # The world moves.

    def edit(self, **spec: Any) -> None:
        """Change fields of the spec."""
        self.model = copy.deepcopy(self.model)
        self.model["spec"] |= spec
        self.model["metadata"]["generation"] += 1

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def set_node(self, name: str, **fields: bool) -> None:
        """Cordon, lose or heal a node; pods of a lost one stop being ready."""
        held = self.nodes.get(name, Node())
        is_schedulable = fields.get("is_schedulable", held.is_schedulable)
        is_ready = fields.get("is_ready", held.is_ready or not held.is_there)
        lost_since = None if is_ready else held.lost_since or self.now
        is_leaving = not is_schedulable
        self.nodes[name] = Node(is_schedulable, is_ready, lost_since=lost_since, is_leaving=is_leaving)
        if not self.nodes[name].is_ready:
            for pod in self.alive():
                if pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
                    self._set_status(pod, "Running", is_ready=False, is_started=True)

    def remove_node(self, name: str) -> None:
        """Delete a node's object; what the operator noted of it stays."""
        held = self.nodes[name]
        self.nodes[name] = replace(
            held, is_ready=False, is_there=False, lost_since=held.lost_since or self.now
        )

    def collect_pods(self) -> None:
        """Pod GC: pods of nodes that are not there vanish."""
        for name, pod in list(self.pods.items()):
            if not self._node_of(pod, self.nodes).is_there:
                del self.pods[name]

    def start(self, name: str) -> None:
        """Schedule a pod if it is not yet, and let its engine get ready unless its revision is broken."""
        pod = self.pods[name]
        if pod["spec"].get("schedulingGates"):
            return
        if not pod["spec"].get("nodeName"):
            free = [name for name in self.nodes if self._has_room(name) and name not in avoided_by(pod)]
            if not free:
                return
            pod = self._changed(name)
            pod["spec"]["nodeName"] = free[len(self.pods) % len(free)]
        has_ended = pod["status"]["phase"] in ("Failed", "Succeeded")
        if has_ended or not self._node_of(pod, self.nodes).is_ready:
            return
        others = [found for found in self._members(pod, self.pods) if found is not pod and is_worker(found)]
        is_led = all(found["status"]["phase"] == "Running" for found in others)
        is_complete = is_worker(pod) or (is_led and self._is_group_intact(pod, self.pods, self.nodes))
        works = is_complete and not self.is_broken(pod)
        self._set_status(pod, "Running", is_ready=works, is_started=works)

    def _has_room(self, name: str) -> bool:
        taken = [pod for pod in self.pods.values() if pod["spec"].get("nodeName") == name]
        taken = [pod for pod in taken if pod["status"]["phase"] not in ("Failed", "Succeeded")]
        node = self.nodes[name]
        is_open = node.is_schedulable and node.is_ready
        return is_open and (self.slots is None or len(taken) < self.slots)

    def stumble(self, name: str, *, is_started: bool) -> None:
        """Let a running pod stop being ready: a slow answer, or (not started) a crash."""
        pod = self.pods[name]
        if pod["status"]["phase"] != "Running":
            return
        if self.size > 1 and not is_started:
            self.fail(name)  # no kubelet restarts a rank
        else:
            self._set_status(pod, "Running", is_ready=False, is_started=is_started)
            if not is_started:
                self.in_flight.pop(uid_of(pod), None)

    def relabel(self, name: str, key: str, value: str) -> None:
        """Change a label of a pod, as a user may; the operator hears of it at once."""
        self._changed(name)["metadata"]["labels"][key] = value
        self.sync_pod(name)

    def fail(self, name: str) -> None:
        """End a pod for good, as an eviction does."""
        self._set_status(self.pods[name], "Failed", is_ready=False, is_started=False)
        self.in_flight.pop(uid_of(self.pods[name]), None)

    def delete(self, name: str) -> None:
        """Delete a pod, as a user or a node drain does."""
        if not is_terminating(self.pods[name]):
            self._changed(name)["metadata"]["deletionTimestamp"] = timestamp(self.now)
            self.in_flight.pop(uid_of(self.pods[name]), None)

    def finish(self, name: str) -> None:
        """Let a terminating pod vanish."""
        if is_terminating(self.pods[name]):
            self.in_flight.pop(uid_of(self.pods.pop(name)), None)

    def alive(self) -> list[Object]:
        """Pods that are not on their way out, by name."""
        return [pod for _, pod in sorted(self.pods.items()) if not is_terminating(pod)]

    # The watches deliver.

    def sync(self) -> None:
        """Bring the whole cache up to date, as a restart does."""
        self.cached_model = self.model
        self.cached_pods = dict(self.pods)
        self.cached_records = dict(self.records)
        self.cached_nodes = dict(self.nodes)

    def sync_pod(self, name: str) -> None:
        """Deliver what happened to one pod."""
        if name in self.pods:
            self.cached_pods[name] = self.pods[name]
        else:
            self.cached_pods.pop(name, None)

    # The operator works.

    def observed(self, readings: dict[str, Reading] | None = None) -> Observed:
        """What the caches hold."""
        pods = tuple(pod for _, pod in sorted(self.cached_pods.items()))
        nodes, model = dict(self.cached_nodes), self.cached_model
        records = tuple(self.cached_records.values())
        found = {"Service": self.service, "PodDisruptionBudget": self.budget}
        name = model["metadata"]["name"]
        children = {(kind, name): child for kind, child in found.items() if child is not None}
        return Observed(model, pods, children, records, nodes, readings or {})

    def next_plan(self) -> Plan:
        """Plan as a pass does: a second time with readings when pods drain."""
        wanted = with_size(wanted_of(self.cached_model), self.size)
        todo = plan(wanted, self.observed(), self.now)
        if not todo.draining:
            return todo
        return plan(wanted, self.observed({uid: self._reading(uid) for uid in todo.draining}), self.now)

    def run_pass(self, *, max_writes: int | None = None, is_last_answer_lost: bool = False) -> Plan:
        """Plan and act; stop early, after so many writes, when told to.

        Args:
            max_writes: None for all.
            is_last_answer_lost: the last write happens, but the cache does not learn of it.
        """
        todo = self.next_plan()
        again = self.next_plan()
        self._require(again == todo, "the same observation makes another plan")
        if todo.records and max_writes != 0:
            # A record comes before all else, and the rest follows from it.
            max_writes = None if max_writes is None else max_writes - 1
            is_lost = is_last_answer_lost and max_writes in (None, 0)
            self._record(todo.records[0], is_lost=is_lost)
            if is_lost:
                return todo
            todo = self.next_plan()
        wanted = wanted_of(self.cached_model)
        actions = todo.actions[:max_writes]
        for index, action in enumerate(actions):
            is_lost = is_last_answer_lost and index == len(actions) - 1
            self._act(action, wanted, is_lost=is_lost)
        return todo

    def _act(self, action: Action, wanted: Wanted, *, is_lost: bool) -> None:
        is_held = wanted.model.spec.rollout.paused
        self._require(not (is_held and action.reason == "Outdated"), "a paused rollout goes on")
        if isinstance(action, Create):
            name = action.name
            if name in self.pods:
                # AlreadyExists: the operator reads what is there.
                self._require(name not in self.cached_pods, "a second pod under a name that is known")
            else:
                self._create(action)
                self._check_surge(wanted, action.manifest)
        elif isinstance(action, Patch) and action.kind != "Pod":
            self._note(action, is_lost=is_lost)
            return
        elif isinstance(action, Patch):
            name = action.name
            self._patch(action, wanted)
        elif isinstance(action, Delete) and action.kind == "Pod":
            name = action.name
            self._delete(action, wanted)
        else:
            self._apply(action)
            return
        if not is_lost:
            self.sync_pod(name)

    def _apply(self, action: Action) -> None:
        if isinstance(action, Delete) and action.kind == "ControllerRevision":
            self.cached_records.pop(action.name)
            gone = self.records.pop(action.name, None)
            if gone is None:
                return
            revision = gone["metadata"]["labels"][labels.REVISION]
            pods = [pod for pod in self.cached_pods.values() if revision_of(pod) == revision]
            self._require(not pods, "the record of pods that are there is deleted")
        elif isinstance(action, Delete):
            assert self.budget is not None
            self.budget = None
        elif not isinstance(action, Apply):
            self._require(False, f"nobody takes pods away from their owner: {action}")
        elif action.manifest["kind"] == "Service":
            self.service = stored(dict(action.manifest), "service")
        else:
            self.budget = stored(dict(action.manifest), "budget")

    def _record(self, action: Create, *, is_lost: bool) -> None:
        name = action.manifest["metadata"]["name"]
        self._require(name not in self.cached_records, "a revision is put on record twice")
        if name not in self.records:
            self.records[name] = stored(dict(action.manifest), name)
        if not is_lost:
            self.cached_records[name] = self.records[name]

    def _note(self, action: Patch, *, is_lost: bool) -> None:
        held = self.records.get(action.name)
        if held is None:
            return
        notes = {**(held["metadata"].get("annotations") or {}), **action.body["metadata"]["annotations"]}
        kept = {key: text for key, text in notes.items() if text is not None}
        self.records[action.name] = {**held, "metadata": {**held["metadata"], "annotations": kept}}
        if not is_lost:
            self.cached_records[action.name] = self.records[action.name]

    def _create(self, action: Create) -> None:
        self._num_created += 1
        known = {stored["metadata"]["labels"][labels.REVISION] for stored in self.records.values()}
        self._require(revision_of(action.manifest) in known, "a pod is made of a revision without a record")
        pod = copy.deepcopy(dict(action.manifest))
        created = timestamp(self.now)
        identity = {"uid": f"uid-{self._num_created}", "creationTimestamp": created}
        pod["metadata"] = {**pod["metadata"], **identity}
        pod["status"] = pod_status("Pending", created, is_ready=False, is_started=False)
        self.pods[action.name] = pod

    def _patch(self, action: Patch, wanted: Wanted) -> None:
        pod = self.pods.get(action.name)
        if pod is None or uid_of(pod) != action.uid:
            return
        pod = self._changed(action.name)
        if action.purpose is Purpose.ADMIT:
            ranks = {rank_of(found) for found in self._members(pod, self.cached_pods)}
            self._require(ranks == set(range(self.size)), "a pod of a group that is not whole is let go")
            pod["spec"]["schedulingGates"] = action.body["spec"]["schedulingGates"]
            pod["metadata"]["annotations"] |= action.body["metadata"]["annotations"]
            return
        for part, values in action.body["metadata"].items():
            pod["metadata"].setdefault(part, {}).update(values)
        self._check_budget(wanted, action.name)
        # One that got ready a moment ago, unknown to the operator, is no loss that it could have avoided.
        if self._is_available(self.cached_pods[action.name], self.cached_pods, self.cached_nodes):
            self._check_available(wanted)

    def _delete(self, action: Delete, wanted: Wanted) -> None:
        pod = self.pods.get(action.name)
        if pod is None or uid_of(pod) != action.uid or is_terminating(pod):
            return
        held = self._leader(self.cached_pods[action.name], self.cached_pods)
        if held is not None:
            is_available = self._is_available(held, self.cached_pods, self.cached_nodes)
            self._require(not is_available, "a group that serves is deleted")
            self._check_drained(held)
        self._changed(action.name)["metadata"]["deletionTimestamp"] = timestamp(self.now)

    # What must hold whatever happens.

    def num_groups(self) -> int:
        """Groups of which any pod exists."""
        return len({group_of(pod) for pod in self.pods.values()})

    def num_available(self) -> int:
        """Groups that answer through the Service."""
        return sum(self._is_available(pod, self.pods, self.nodes) for pod in self.pods.values())

    def _live_groups(self) -> set[str]:
        """Groups that count as replicas as far as the operator can know."""
        pods = self.cached_pods
        return {
            group_of(pod)
            for pod in pods.values()
            if not is_worker(pod) and self._is_live(pod, pods, self.cached_nodes)
        }

    def _require(self, holds: bool, otherwise: str) -> None:
        self.is_violated = self.is_violated or not holds
        assert holds, otherwise

    def _check_surge(self, wanted: Wanted, created: Mapping[str, Any]) -> None:
        num_live = len(self._live_groups() | {group_of(created)})  # the new pod is not cached yet
        self._require(
            num_live <= wanted.scale.num_wanted + wanted.scale.max_surge, f"{num_live} groups are too many"
        )

    def _check_available(self, wanted: Wanted) -> None:
        # Readiness as the operator could know it, its own writes as they are, answer lost or not.
        pods = self.cached_pods
        known = (pod for pod in pods.values() if self._is_available(pod, pods, self.cached_nodes))
        names = [name for pod in known if (name := pod["metadata"]["name"]) in self.pods]
        after = sum(serves(self.pods[name]) for name in names)
        least = wanted.scale.num_wanted - wanted.scale.max_unavailable
        self._require(after >= least, f"{after} groups answer, {least} have to")

    def _check_budget(self, wanted: Wanted, stopping: str) -> None:
        """An eviction may take as many pods as a rollout may groups, though draining ones look available.

        Each may hit another group, so then as many are left as there have to be.
        """
        least = wanted.scale.num_wanted - wanted.scale.max_unavailable
        if self.budget is None:
            self._require(least <= 0, "there is no budget")
            return
        draining = sum(
            is_ready(pod) and not is_terminating(pod) and not self._serves(pod, stopping)
            for pod in self.cached_pods.values()
        )
        left = self.budget["spec"]["minAvailable"] - draining
        most = wanted.scale.num_wanted * self.size
        self._require(
            left >= most - wanted.scale.max_unavailable,
            f"evictions may leave {left} pods of {most} that answer",
        )

    def _serves(self, pod: Object, stopping: str) -> bool:
        leader = self._leader(pod, self.cached_pods)
        return leader is not None and serves(leader) and leader["metadata"]["name"] != stopping

    def _check_drained(self, pod: Object) -> None:
        count = self.in_flight.get(uid_of(pod), 0)
        since = pod["metadata"].get("annotations", {}).get(labels.DRAINING_SINCE)
        grace = timedelta(seconds=pod["spec"]["terminationGracePeriodSeconds"])
        drained_for = self.now - datetime.fromisoformat(since) if since else timedelta()
        is_late, has_settled = drained_for >= grace, drained_for >= MIN_SETTLE
        can_answer = (
            self._is_group_intact(pod, self.cached_pods, self.cached_nodes)
            and self._node_of(pod, self.cached_nodes).is_ready
            and pod["status"]["containerStatuses"][0]["started"]
        )
        self._require(has_settled or not can_answer, "nodes may still send it requests")
        self._require(not (count and can_answer) or is_late, f"{count} requests are cut off")

    def _reading(self, uid: str) -> Reading:
        pod = next((pod for pod in self.pods.values() if uid_of(pod) == uid), None)
        if pod is None or pod["status"]["phase"] != "Running" or is_terminating(pod):
            return Reading(self.now, None)
        if not self._node_of(pod, self.nodes).is_ready:
            return Reading(self.now, None)
        return Reading(self.now, self.in_flight.get(uid, 0))

    @staticmethod
    def _node_of(pod: Object, nodes: dict[str, Node]) -> Node:
        return nodes.get(pod["spec"].get("nodeName", ""), Node())

    def _is_intact(self, pod: Object, nodes: dict[str, Node]) -> bool:
        since = self._node_of(pod, nodes).lost_since
        is_lost = since is not None and (self.now - since).total_seconds() >= LOST_AFTER_S
        has_ended = pod["status"]["phase"] in ("Failed", "Succeeded")
        return not (has_ended or is_terminating(pod) or is_lost)

    def _members(self, pod: Mapping[str, Any], pods: Mapping[str, Object]) -> list[Object]:
        return [found for found in pods.values() if group_of(found) == group_of(pod)]

    def _leader(self, pod: Object, pods: Mapping[str, Object]) -> Object | None:
        return next((found for found in self._members(pod, pods) if not is_worker(found)), None)

    def _is_group_intact(
        self, leader: Object, pods: Mapping[str, Object], nodes: dict[str, Node], *, is_begun: bool = True
    ) -> bool:
        """Whether all its pods are there and none has ended; one that has not begun may lack some."""
        found = self._members(leader, pods)
        if not all(self._is_intact(pod, nodes) for pod in found):
            return False
        if len(found) == self.size:
            return True
        return not is_begun and all(pod["spec"].get("schedulingGates") for pod in found)

    def _is_live(self, pod: Object, pods: Mapping[str, Object], nodes: dict[str, Node]) -> bool:
        is_intact = self._is_group_intact(pod, pods, nodes, is_begun=False)
        return is_intact and serves(pod) and not self._is_stranded(pod)

    def _is_stranded(self, pod: Object) -> bool:
        """One that found no other node holds nothing, and is replaced as a failed one is."""
        since = pod["metadata"]["annotations"].get(labels.LET_GO_AT) or pod["metadata"]["creationTimestamp"]
        age = self.now - datetime.fromisoformat(since)
        is_looking = bool(avoided_by(pod)) and "nodeName" not in pod["spec"]
        return is_looking and age.total_seconds() >= STRANDED_AFTER_S

    def _is_available(self, pod: Object, pods: Mapping[str, Object], nodes: dict[str, Node]) -> bool:
        if is_worker(pod) or not (self._is_live(pod, pods, nodes) and is_ready(pod)):
            return False
        return all(found["status"]["phase"] == "Running" for found in self._members(pod, pods))

    def _changed(self, name: str) -> Object:
        """Replace a pod by a copy to change, so that the cache keeps what it has."""
        self.pods[name] = copy.deepcopy(self.pods[name])
        return self.pods[name]

    def _set_status(self, pod: Object, phase: str, *, is_ready: bool, is_started: bool) -> None:
        before, now = pod["status"], timestamp(self.now)
        if is_ready or is_started:
            self.answered.add(uid_of(pod))
        status = pod_status(phase, now, is_ready, is_started)
        # As a kubelet does: a pod starts once, and the time of a condition moves only with its status.
        if "podIP" in before:
            status["startTime"] = before["startTime"]
            held = {entry["type"]: entry for entry in before["conditions"]}
            for entry in status["conditions"]:
                if held[entry["type"]]["status"] == entry["status"]:
                    entry["lastTransitionTime"] = held[entry["type"]]["lastTransitionTime"]
        self._changed(pod["metadata"]["name"])["status"] = status


def uid_of(pod: Object) -> str:
    """Return a pod's uid."""
    uid: str = pod["metadata"]["uid"]
    return uid


def revision_of(pod: Mapping[str, Any]) -> str:
    """Return the revision that a pod was made from."""
    revision: str = pod["metadata"]["labels"][labels.REVISION]
    return revision


def group_of(pod: Mapping[str, Any]) -> str:
    """Return the group that a pod is of."""
    group: str = pod["metadata"]["labels"][labels.POD_GROUP]
    return group


def rank_of(pod: Mapping[str, Any]) -> int:
    """Return a pod's place in its group."""
    return int(pod["metadata"]["labels"][labels.RANK])


def is_worker(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod answers no HTTP."""
    return rank_of(pod) > 0


def serves(pod: Object) -> bool:
    """Tell whether the Service may send requests to a pod once it is ready."""
    return not is_terminating(pod) and pod["metadata"]["labels"].get(labels.SERVING) == "true"


def is_terminating(pod: Object) -> bool:
    """Tell whether a pod was deleted and only finishes."""
    return "deletionTimestamp" in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """Tell whether a pod's Ready condition holds."""
    return any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in pod["status"]["conditions"]
    )
