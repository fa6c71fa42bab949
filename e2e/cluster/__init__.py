"""A real Kubernetes cluster for scenarios, integration tests and the demo, behind one small interface.

`open_cluster` picks a back end: kind where a Docker engine answers, else Kubernetes built from its own Go
modules and run in network namespaces (root only). `control_plane` is the small sibling: etcd and an API
server on loopback, no kubelet, any user. `images` builds container images without a registry.
`docs/e2e-cluster.md` has the whole story.
"""

from cluster.api import Cluster, ClusterError
from cluster.backends import open_cluster
from cluster.integration import ControlPlane, control_plane

__all__ = ["Cluster", "ClusterError", "ControlPlane", "control_plane", "open_cluster"]
