"""The kinds of object the operator touches, and their URLs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """One kind of object.

    Args:
        group: API group; "" is the core group.
        version: API version.
        kind: as in manifests.
        plural: as in URLs.
        namespaced: whether objects live in a namespace.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """``apiVersion`` of a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def url(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Path below the server's address; without a namespace it is the path over all of them."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/" + "/".join(parts)


MODEL_DEPLOYMENTS = Resource("stoker.dev", "v1alpha1", "ModelDeployment", "modeldeployments")
PODS = Resource("", "v1", "Pod", "pods")
SERVICES = Resource("", "v1", "Service", "services")
PDBS = Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
NODES = Resource("", "v1", "Node", "nodes", namespaced=False)
CONTROLLER_REVISIONS = Resource("apps", "v1", "ControllerRevision", "controllerrevisions")
EVENTS = Resource("events.k8s.io", "v1", "Event", "events")

_ALL = (MODEL_DEPLOYMENTS, PODS, SERVICES, PDBS, NODES, CONTROLLER_REVISIONS, EVENTS)
BY_KIND = {resource.kind: resource for resource in _ALL}
