"""Everything that can happen to a ModelDeployment in a story: one method for each kind of step."""

from __future__ import annotations

from typing import Any

from fakeapi import admission
from fakeapi.client import delete, everything, get, put
from fakeapi.faults import Call, Fault
from operator_world import NAME, Object
from storm_engines import Engines, Undo
from storm_start import add_node, spec_of
from storm_story import Story

from stoker_operator.api import labels

METADATA = {"name": NAME, "namespace": "default"}


class Troubles(Engines):
    """A world in which a story happens. A method of a step returns what takes its effect back, if anything.

    Args:
        story: what happens.
    """

    def __init__(self, story: Story) -> None:
        super().__init__(story)
        self._hidden: set[str] = set()

    # Users.

    def revive(self) -> None:
        """A ModelDeployment must be there to be edited."""
        if get(self.world.api, "modeldeployments", NAME) is None:
            self.world.apply(replicas=self.story.replicas)

    def _scale(self, replicas: int) -> None:
        self.world.apply(replicas=replicas)

    def _edit(self, length: int) -> None:
        self.world.apply(engine={"maxModelLen": length})

    def _limit(self, surge: int, unavailable: int) -> None:
        self.world.apply(rollout={"maxSurge": surge, "maxUnavailable": unavailable})

    def _pause(self) -> Undo:
        self.world.apply(rollout={"paused": True})
        return lambda: self.world.apply(rollout={"paused": False})

    def _suspend(self) -> Undo:
        self.world.apply(suspend=True)
        return lambda: self.world.apply(suspend=False)

    def _restart(self) -> None:
        at = self.world.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        noted = {"metadata": {**METADATA, "annotations": {labels.RESTARTED_AT: at}}}
        put(self.world.api, "modeldeployments", noted)

    def _recreate(self, length: int) -> None:
        self.world.delete()
        story = self.story
        self.world.apply(
            **spec_of(story.replicas, story.slots, story.grace_s), engine={"maxModelLen": length}
        )
        self._limit(*story.limits)

    # The API server and its watches.

    def _fail_calls(self, *faults: tuple[int, Fault]) -> Undo:
        """The n-th calls from now on fail."""
        left, start = dict(faults), len(self.world.api.calls)

        def inject(call: Call) -> Fault | None:
            del call
            return left.pop(len(self.world.api.calls) - 1 - start, None)

        self.world.api.injector = inject
        return left.clear

    def _break_watches(self) -> None:
        self.world.api.break_watches()

    def _expire_watches(self) -> None:
        self.world.api.storage.compact()
        self.world.api.break_watches()

    def _delay_events(self, lag_s: float) -> Undo:
        self.world.api.watch_lag_s = lag_s
        return lambda: setattr(self.world.api, "watch_lag_s", 0.0)

    def _double_events(self) -> Undo:
        self.world.api.watch_repeats = 2
        return lambda: setattr(self.world.api, "watch_repeats", 1)

    # Admission.

    def _hook(self, hook: admission.Hook) -> Undo:
        # The guard comes last and sees what is stored.
        self.world.api.admission.insert(0, hook)
        return lambda: self.world.api.admission.remove(hook)

    def _refuse(self, plural: str, text: str, code: int) -> Undo:
        subresource = "status" if plural == "modeldeployments" else ""
        words = getattr(admission, text)
        return self._hook(admission.refuse(plural, words, code, subresource=subresource))

    def _annotate(self, plural: str) -> Undo:
        def note(obj: Object) -> None:
            obj["metadata"].setdefault("annotations", {})["policy.example/seen"] = "yes"

        return self._hook(admission.edit(plural, note))

    def _inject(self) -> Undo:
        def add(pod: Object) -> None:
            names = [container["name"] for container in pod["spec"]["containers"]]
            if "sidecar" not in names and "nodeName" not in pod["spec"]:
                pod["spec"]["containers"].append({"name": "sidecar", "image": "sidecar.example/proxy:1"})

        def only_new(review: admission.Review) -> Object | None:
            return edit(review) if review.operation == "CREATE" else None

        edit = admission.edit("pods", add)
        return self._hook(only_new)

    def _drop_label(self, plural: str, key: str) -> Undo:
        return self._hook(admission.relabel(plural, **{key: None}))

    # Nodes.

    def _cordon(self, name: str) -> Undo:
        return self._changed_node(name, unschedulable=True)

    def _changed_node(self, name: str, **change: Any) -> Undo:
        if get(self.world.api, "nodes", name, "") is not None:
            self.world.kubelet.add_node(name, **change)
        return lambda: self._recover(name)

    def _recover(self, name: str) -> None:
        self.world.kubelet.nodes.recover(name)
        add_node(self.world.kubelet, name, self.story.slots)

    def _lose_node(self, name: str) -> Undo:
        if get(self.world.api, "nodes", name, "") is not None:
            self.world.kubelet.nodes.lose(name)
        return lambda: self._recover(name)

    def _remove_node(self, name: str) -> Undo:
        if get(self.world.api, "nodes", name, "") is not None:
            self.world.kubelet.nodes.remove(name)
        return lambda: self._recover(name)

    def _taint(self, name: str, key: str) -> Undo:
        return self._changed_node(name, taints=[{"key": key, "effect": "NoSchedule"}])

    def _drain(self, name: str) -> Undo:
        """A cordon, and the eviction of one pod after it, budget or not."""
        undo = self._cordon(name)
        for pod in self.world.pods():
            if pod["spec"].get("nodeName") == name:
                self._evict(pod)
                break
        return undo

    # Pods.

    def _delete_pod(self, pick: int) -> None:
        pod = self.picked(pick)
        if pod is not None:
            delete(self.world.api, "pods", pod["metadata"]["name"])

    def _fail_pod(self, pick: int) -> None:
        pod = self.picked(pick)
        if pod is not None and pod["spec"].get("nodeName"):
            self.world.kubelet.fail(pod["metadata"]["name"])

    def _evict_pod(self, pick: int) -> None:
        pod = self.picked(pick)
        if pod is not None:
            self._evict(pod)

    def _evict(self, pod: Object) -> None:
        target = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        conditions = [*(pod["status"].get("conditions") or []), target]
        metadata = {"name": pod["metadata"]["name"], "namespace": "default"}
        put(self.world.api, "pods", {"metadata": metadata, "status": {"conditions": conditions}}, "eviction")
        delete(self.world.api, "pods", metadata["name"])

    def _hide_pod(self, pick: int, key: str) -> None:
        """Somebody takes a pod out of sight, to look at it in peace."""
        pod = self.picked(pick)
        if pod is None:
            return
        self._hidden.add(pod["metadata"]["uid"])
        metadata = {"name": pod["metadata"]["name"], "namespace": "default"}
        put(self.world.api, "pods", {"metadata": {**metadata, "labels": {f"stoker.dev/{key}": None}}})

    # Others who write.

    def _edit_child(self, plural: str) -> None:
        if get(self.world.api, plural, NAME) is None:
            return
        spec: Object = {"selector": {"app": "another"}} if plural == "services" else {"minAvailable": 0}
        put(
            self.world.api,
            plural,
            {"metadata": {**METADATA, "labels": {labels.DEPLOYMENT: "x"}}, "spec": spec},
        )

    def _delete_child(self, plural: str) -> None:
        if get(self.world.api, plural, NAME) is not None:
            delete(self.world.api, plural, NAME)

    def _delete_records(self) -> None:
        for record in everything(self.world.api, "controllerrevisions"):
            delete(self.world.api, "controllerrevisions", record["metadata"]["name"])

    def _edit_status(self) -> None:
        self.revive()
        news = {"metadata": METADATA, "status": {"replicas": 7, "conditions": []}}
        put(self.world.api, "modeldeployments", news, "somebody")

    # The operator.

    def _restart_operator(self) -> Undo:
        self.world.stop()
        return self.world.restart
