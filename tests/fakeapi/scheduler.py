"""A scheduler with capacity, taints and node affinity, as far as our pods ask for them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fakeapi.client import everything, put
from fakeapi.core import FakeApi

Object = dict[str, Any]

_REPELLING = frozenset({"NoSchedule", "NoExecute"})
_UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_MILLI = 1000


class Scheduler:
    """Binds pods to nodes, or says in the pod's status why no node fits.

    Args:
        api: where pods and nodes are.
    """

    def __init__(self, api: FakeApi) -> None:
        self.api = api

    def place(self, pod: Object) -> None:
        """Try one pod once."""
        nodes = everything(self.api, "nodes")
        misfits = {node["metadata"]["name"]: self._misfit(pod, node) for node in nodes}
        name = next((name for name, misfit in misfits.items() if misfit is None), None)
        condition: Object = {"type": "PodScheduled", "status": "True"}
        if name is None:
            counts = Counter(filter(None, misfits.values()))
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
            text = f"0/{len(nodes)} nodes are available: {reasons}."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": text,
            }
        before = pod["status"].get("conditions") or []
        condition["lastTransitionTime"] = self.api.storage.now()
        if before and before[0]["status"] == condition["status"]:
            # The API server says of a gated pod that it isn't scheduled, but not since when.
            condition["lastTransitionTime"] = (
                before[0].get("lastTransitionTime") or condition["lastTransitionTime"]
            )
        identity = {key: pod["metadata"][key] for key in ("name", "namespace")}
        news: Object = {"metadata": identity, "status": {"conditions": [condition]}}
        put(self.api, "pods", news if name is None else {**news, "spec": {"nodeName": name}}, "scheduler")

    def _misfit(self, pod: Object, node: Object) -> str | None:
        """Why the pod cannot go to the node, in the real scheduler's words."""
        for taint in taints_of(node):
            if taint["effect"] in _REPELLING and not tolerates(pod, taint):
                if taint["key"] == _UNSCHEDULABLE["key"]:
                    return "node(s) were unschedulable"
                return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        if not _is_chosen(pod, node):
            return "node(s) didn't match Pod's node affinity/selector"
        for resource, free in self._free(node).items():
            if requests_of(pod).get(resource, 0) > free:
                return f"Insufficient {resource}"
        return None

    def _free(self, node: Object) -> dict[str, int]:
        """What the node has left, of what it says it has; what it does not name is without end."""
        allocatable = (node.get("status") or {}).get("allocatable") or {}
        free = {resource: _amount(text) for resource, text in allocatable.items()}
        for pod in everything(self.api, "pods"):
            is_over = pod["status"].get("phase") in ("Succeeded", "Failed")
            if pod["spec"].get("nodeName") == node["metadata"]["name"] and not is_over:
                for resource, amount in requests_of(pod).items():
                    if resource in free:
                        free[resource] -= amount
        return free


def taints_of(node: Object) -> list[Object]:
    """A node's taints, with the one that a cordon amounts to."""
    spec = node.get("spec") or {}
    return [*(spec.get("taints") or []), *([_UNSCHEDULABLE] if spec.get("unschedulable") else [])]


def tolerates(pod: Object, taint: Mapping[str, Any]) -> bool:
    """Whether one of the pod's tolerations fits a taint."""
    return any(_fits(toleration, taint) for toleration in pod["spec"].get("tolerations") or [])


def _fits(toleration: Object, taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, taint["effect"]):
        return False
    if toleration.get("key") not in (None, taint["key"]):
        return False
    is_any = toleration.get("operator", "Equal") == "Exists"
    return bool(is_any or toleration.get("value", "") == taint.get("value", ""))


def requests_of(pod: Object) -> dict[str, int]:
    """What a pod takes of its node: thousandths of each resource, one pod among them."""
    total: Counter[str] = Counter({"pods": _MILLI})
    for container in pod["spec"]["containers"]:
        for resource, text in ((container.get("resources") or {}).get("requests") or {}).items():
            total[resource] += _amount(text)
    return dict(total)


def _amount(text: str) -> int:
    """A quantity in thousandths; memory is not modelled."""
    number = str(text)
    if number.endswith("m"):
        return int(number[:-1])
    return int(number) * _MILLI if number.isdigit() else 0


def _is_chosen(pod: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(_term_fits(term, node) for term in required["nodeSelectorTerms"])


def _term_fits(term: Object, node: Object) -> bool:
    """Whether all of a term holds; one that asks for nothing fits nothing."""
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    asked = [(rule, labels) for rule in term.get("matchExpressions") or []]
    asked += [(rule, fields) for rule in term.get("matchFields") or []]
    return bool(asked) and all(_rule_holds(rule, values) for rule, values in asked)


def _rule_holds(rule: Object, values: Mapping[str, str]) -> bool:
    value = values.get(rule["key"])
    match rule["operator"]:
        case "In":
            return value in rule["values"]
        case "NotIn":
            return value not in rule["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"the fake does not know the operator {rule['operator']}")
