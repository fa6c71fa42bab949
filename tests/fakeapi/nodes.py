"""Controllers that watch over nodes: they mark lost ones, evict from them, collect pods of dead ones."""

from datetime import datetime
from typing import Any

from fakeapi.client import delete, everything, get, put
from fakeapi.core import FakeApi
from fakeapi.scheduler import taints_of, tolerates

Object = dict[str, Any]

GC_AFTER_S = 40.0  # pod GC waits so long before it believes that a node is gone
EVICT_AFTER_S = 300.0  # tolerationSeconds of the default tolerations
_UNREACHABLE = "node.kubernetes.io/unreachable"


class Nodes:
    """Nodes and their controllers.

    Args:
        api: where pods and nodes are.
    """

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self._missing_since: dict[str, datetime] = {}
        self._lost_since: dict[str, datetime] = {}

    def add(
        self,
        name: str,
        unschedulable: bool = False,
        ready: bool = True,
        allocatable: dict[str, str] | None = None,
        taints: list[Object] | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Create a node, or change it."""
        condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
        spec: Object = {"unschedulable": True} if unschedulable else {"unschedulable": None}
        if taints is not None:
            spec["taints"] = taints or None
        status: Object = {"conditions": [condition]}
        if allocatable is not None:
            status["allocatable"] = allocatable
        metadata: Object = {"name": name} if labels is None else {"name": name, "labels": labels}
        put(self.api, "nodes", {"metadata": metadata, "spec": spec, "status": status}, "kubelet")

    def lose(self, name: str) -> None:
        """The kubelet stops reporting: the node gets its taints, its pods are not ready any more."""
        self._lost_since[name] = self._now()
        taints = [{"key": _UNREACHABLE, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
        self.add(name, ready=False, taints=taints)
        for pod in self._pods_on(name):
            conditions = [
                {**condition, "status": "False", "lastTransitionTime": self.api.storage.now()}
                if condition["type"] == "Ready" and condition["status"] == "True"
                else condition
                for condition in pod["status"].get("conditions") or []
            ]
            put(self.api, "pods", {**_identity(pod), "status": {"conditions": conditions}}, "node-controller")

    def recover(self, name: str) -> None:
        """The kubelet reports again."""
        self._lost_since.pop(name, None)
        self.add(name, ready=True, taints=[])

    def remove(self, name: str) -> None:
        """Delete the node's object, as a cloud controller does once the machine is gone."""
        delete(self.api, "nodes", name, "")

    def is_up(self, pod: Object) -> bool:
        """Whether the pod's node has a kubelet that works."""
        node = get(self.api, "nodes", pod["spec"].get("nodeName", ""), "")
        return node is not None and node["status"]["conditions"][0]["status"] == "True"

    def advance(self) -> None:
        """One step of pod GC and of evictions by taint."""
        names = {node["metadata"]["name"] for node in everything(self.api, "nodes")}
        for pod in everything(self.api, "pods"):
            node = pod["spec"].get("nodeName")
            if node and node not in names:
                now = self._now()
                since = self._missing_since.setdefault(node, now)
                if (now - since).total_seconds() >= GC_AFTER_S:
                    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
                    delete(self.api, "pods", name, namespace, grace_s=0)
        for name in names:
            self._missing_since.pop(name, None)
        for name, since in self._lost_since.items():
            if name in names and (self._now() - since).total_seconds() >= EVICT_AFTER_S:
                self._evict(name)

    def _evict(self, name: str) -> None:
        node = get(self.api, "nodes", name, "")
        assert node is not None
        taints = [taint for taint in taints_of(node) if taint["effect"] == "NoExecute"]
        for pod in self._pods_on(name):
            is_going = "deletionTimestamp" in pod["metadata"]
            if not is_going and not all(tolerates(pod, taint) for taint in taints):
                delete(self.api, "pods", pod["metadata"]["name"], pod["metadata"]["namespace"])

    def _pods_on(self, name: str) -> list[Object]:
        return [pod for pod in everything(self.api, "pods") if pod["spec"].get("nodeName") == name]

    def _now(self) -> datetime:
        return datetime.fromisoformat(self.api.storage.now())


def _identity(pod: Object) -> Object:
    return {"metadata": {key: pod["metadata"][key] for key in ("name", "namespace")}}
