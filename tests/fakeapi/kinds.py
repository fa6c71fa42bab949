"""What the fake API server knows of each kind: its URL, its status subresource, its defaults."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of object that the fake serves.

    Args:
        table: name in the storage and for tests; its plural unless two groups have a kind of that name.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    has_status: bool = True
    spec_is_immutable: bool = False
    table: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table or self.plural)

    @property
    def prefix(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


# Of another project, whose CRD is installed beside ours.
THEIRS = Kind(
    "serving.example.org", "v1", "ModelDeployment", "modeldeployments", table="modeldeployments.example"
)
KINDS = (
    Kind("stoker.dev", "v1alpha1", "ModelDeployment", "modeldeployments"),
    THEIRS,
    Kind("", "v1", "Pod", "pods", spec_is_immutable=True),
    Kind("", "v1", "Service", "services"),
    Kind("", "v1", "Node", "nodes", namespaced=False),
    Kind("", "v1", "Namespace", "namespaces", namespaced=False),
    Kind("coordination.k8s.io", "v1", "Lease", "leases", has_status=False),
    Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("apps", "v1", "ControllerRevision", "controllerrevisions", has_status=False),
    Kind("events.k8s.io", "v1", "Event", "events", has_status=False),
    Kind("", "v1", "Event", "events", has_status=False),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        namespaced=False,
    ),
)


@dataclass(frozen=True)
class Target:
    """What a URL points at."""

    kind: Kind
    namespace: str | None
    name: str | None
    subresource: str | None


def resolve(path: str) -> Target | None:
    """The target of a URL path, None when the fake serves nothing there."""
    for kind in KINDS:
        if not path.startswith(kind.prefix + "/"):
            continue
        parts = path[len(kind.prefix) + 1 :].split("/")
        namespace: str | None = None
        if kind.namespaced and parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        if parts[0] != kind.plural:
            continue
        name = parts[1] if len(parts) > 1 else None
        return Target(kind, namespace, name, parts[2] if len(parts) > 2 else None)
    return None


def default(kind: Kind, obj: Object, serial: int) -> None:
    """Fill in what a real API server fills in on create; changes ``obj`` and nothing in it."""
    if kind.table == "pods":
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        if obj["spec"].get("schedulingGates"):
            text = "Scheduling is blocked due to non-empty scheduling gates"
            gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": text}
            obj["status"]["conditions"] = [gated]
        obj["spec"] = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, **obj["spec"]}
    elif kind.table == "services":
        address = f"10.96.0.{serial % 250 + 1}"
        spec = {"type": "ClusterIP", "sessionAffinity": "None", "clusterIP": address, **obj["spec"]}
        if "ports" in spec:
            spec["ports"] = [
                {"protocol": "TCP", "targetPort": port["port"], **port} for port in spec["ports"]
            ]
        obj["spec"] = spec
        obj["status"] = {"loadBalancer": {}}
    elif kind.table == "modeldeployments":
        obj["status"] = {"observedGeneration": -1}
    elif kind.table == "poddisruptionbudgets":
        obj.setdefault("status", {"disruptionsAllowed": 0})


def are_gates_removed(before: Object, after: Object) -> bool:
    """Whether all that differs in a pod's spec is that scheduling gates are gone, which is allowed."""
    held, left = before.get("schedulingGates") or [], after.get("schedulingGates") or []
    return all(gate in held for gate in left) and {**before, "schedulingGates": left} == {
        **after,
        "schedulingGates": left,
    }


def matches(obj: Object, selector: str) -> bool:
    """Whether the labels fit an equality-based selector."""
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if equals and labels.get(key) != value.lstrip("="):
            return False
        if not equals and key not in labels:
            return False
    return True
