"""What scenarios ask about a ModelDeployment and wait for."""

from __future__ import annotations

from scenarios.kube import Kube, Object, condition, is_true
from scenarios.platform import DEPLOYMENT_LABEL, alive
from scenarios.waiting import eventually

READY_TIMEOUT_S = 120


class Model:
    """One ModelDeployment by name."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.name = name

    def observed(self) -> Object | None:
        """The object as it is now."""
        return self.kube.get("ModelDeployment", self.name, self.namespace)

    def status(self) -> Object:
        """Its status; empty when there is none."""
        return (self.observed() or {}).get("status") or {}

    def pods(self) -> list[Object]:
        """Its pods, those on their way out included."""
        return self.kube.get_all("Pod", self.namespace, f"{DEPLOYMENT_LABEL}={self.name}")

    def alive_pods(self) -> list[Object]:
        """Its pods that are not on their way out."""
        return alive(self.pods())

    def serving_pods(self) -> list[str]:
        """Names of the pods that the Service sends requests to."""
        slices = self.kube.get_all("EndpointSlice", self.namespace, f"kubernetes.io/service-name={self.name}")
        endpoints = [endpoint for found in slices for endpoint in found.get("endpoints") or []]
        return sorted(
            endpoint["targetRef"]["name"] for endpoint in endpoints if endpoint["conditions"]["ready"]
        )

    def condition(self, kind: str) -> Object:
        """One of its conditions."""
        return condition(self.observed(), kind)

    def edit(self, **spec: object) -> None:
        """Merge fields into its spec."""
        self.kube.merge("ModelDeployment", self.name, self.namespace, {"spec": spec})

    def explain(self) -> object:
        """What a failure should show: status, and where the pods stand."""
        pods = [(pod["metadata"]["name"], pod.get("status", {}).get("phase")) for pod in self.pods()]
        return {"status": self.status(), "pods": pods}

    def is_settled(self) -> bool:
        """Whether it is Ready at its current generation and nothing is left to do."""
        thing = self.observed()
        if not is_true(thing, "Ready") or is_true(thing, "Reconciling") or is_true(thing, "Stalled"):
            return False
        assert thing is not None
        status, wanted = thing["status"], thing["spec"].get("replicas", 1)
        counts = (status["replicas"], status["readyReplicas"], status["updatedReplicas"])
        return status["observedGeneration"] == thing["metadata"]["generation"] and counts == (wanted,) * 3

    def wait_settled(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it is Ready as its spec stands now, with no other pod left."""
        eventually(f"{self.name} settles", self.is_settled, timeout_s, self.explain)
        eventually(f"{self.name} has no pod to go", self._has_no_other_pod, timeout_s, self.explain)

    def wait_reason(self, kind: str, reason: str, timeout_s: float = 60) -> Object:
        """Wait until a condition has a reason, and return the condition."""

        def probe() -> Object | None:
            found = self.condition(kind)
            return found if found.get("reason") == reason else None

        return eventually(f"{kind} of {self.name} is {reason}", probe, timeout_s, self.explain)

    def wait_gone(self, timeout_s: float = 120) -> None:
        """Wait until nothing with its name or its label is left."""

        def children() -> list[Object]:
            kinds = ("Service", "PodDisruptionBudget", "ModelDeployment")
            named = [self.kube.get(kind, self.name, self.namespace) for kind in kinds]
            records = [
                record
                for record in self.kube.get_all("ControllerRevision", self.namespace)
                if record["metadata"].get("labels", {}).get("stoker.dev/deployment") == self.name
            ]
            return [*(thing for thing in named if thing), *records, *self.pods()]

        eventually(f"{self.name} and its children are gone", lambda: not children(), timeout_s, children)

    def _has_no_other_pod(self) -> bool:
        thing = self.observed()
        return thing is not None and len(self.pods()) == thing["spec"].get("replicas", 1)


def apply(kube: Kube, manifest: Object) -> Model:
    """Apply a ModelDeployment and return a handle on it."""
    metadata = manifest["metadata"]
    kube.apply(manifest)
    return Model(kube, metadata["namespace"], metadata["name"])
