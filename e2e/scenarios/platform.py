"""The cluster that scenarios share: brought up once, with the images and the chart on it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import product
from cluster.api import Cluster
from cluster.backends import open_cluster
from scenarios import manifests
from scenarios.kube import Kube, Object, is_true
from scenarios.waiting import eventually

NUM_NODES = 2
GPUS_PER_NODE = 1  # so that "one too many" is three pods, not nine
DEPLOYMENT_LABEL = "stoker.dev/deployment"
LEADERS = "stoker.dev/role=leader"


@dataclass(frozen=True)
class Platform:
    """A cluster with Stoker installed."""

    cluster: Cluster
    kube: Kube
    archives: Mapping[str, Path]
    up_s: float  # how long the cluster took to come up

    def operator_pods(self) -> list[Object]:
        """Return the operator's pods that are not on their way out."""
        return alive(self.kube.get_all("Pod", product.NAMESPACE, "app.kubernetes.io/name=stoker-operator"))

    def scale_operator(self, num_replicas: int) -> None:
        """Start or stop the operator and wait until it runs or has gone."""
        replicas: Object = {"spec": {"replicas": num_replicas}}
        deployments = self.kube.get_all(
            "Deployment", product.NAMESPACE, "app.kubernetes.io/name=stoker-operator"
        )
        assert len(deployments) == 1, f"one operator Deployment expected, found {len(deployments)}"
        name = deployments[0]["metadata"]["name"]
        self.kube.merge("Deployment", name, product.NAMESPACE, replicas)
        self.wait_for_operator(num_replicas)

    def wait_for_operator(self, num_replicas: int = 1) -> None:
        """Wait until that many operator pods exist and all of them are ready."""

        def is_there() -> bool:
            selector = "app.kubernetes.io/name=stoker-operator"
            pods = self.kube.get_all("Pod", product.NAMESPACE, selector)
            return len(pods) == num_replicas and all(is_true(pod, "Ready") for pod in pods)

        eventually(f"{num_replicas} ready operator pods", is_there, 90, self.operator_pods)

    def wait_for_leader(self) -> None:
        """Wait until one of the operator's pods holds the Lease: of one that crashed it ends by itself."""

        def is_there() -> bool:
            where = f"/apis/coordination.k8s.io/v1/namespaces/{product.NAMESPACE}/leases"
            leases = self.kube.request("GET", where)["items"]
            holders = {str((lease.get("spec") or {}).get("holderIdentity")) for lease in leases}
            names = [pod["metadata"]["name"] for pod in self.operator_pods()]
            return any(holder.startswith(f"{name}_") for holder in holders for name in names)

        eventually("an operator that leads", is_there, 30)

    def upgrade_chart(self, settings: Mapping[str, str]) -> None:
        """Run `helm upgrade` with further settings."""
        product.install_chart(self.cluster, self.archives, settings)


@contextmanager
def installed(name: str) -> Iterator[Platform]:
    """Bring up a cluster with everything on it; remove it in the end unless STOKER_E2E_KEEP is set."""
    cluster = open_cluster(name)
    start_s = time.monotonic()
    try:
        cluster.up(num_nodes=NUM_NODES, gpus_per_node=GPUS_PER_NODE)
        up_s = time.monotonic() - start_s
        archives = product.build_images()
        for archive in archives.values():
            cluster.load_image(archive)
        product.install_chart(cluster, archives)
        with Kube(cluster) as kube:
            yield Platform(cluster, kube, archives, up_s)
    finally:
        if not os.environ.get("STOKER_E2E_KEEP"):
            cluster.down()


@contextmanager
def temporary_namespace(kube: Kube, prefix: str, pod_security: str = "restricted") -> Iterator[str]:
    """Make a namespace of its own and delete it in the end, without waiting for its pods to go."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kube.apply(manifests.namespace_manifest(name, pod_security))
    try:
        yield name
    finally:
        kube.delete("Namespace", name)


def alive(things: list[Object]) -> list[Object]:
    """Return the objects that are not being deleted."""
    return [thing for thing in things if "deletionTimestamp" not in thing["metadata"]]


def names(things: list[Object]) -> set[str]:
    """Return the names of objects."""
    return {thing["metadata"]["name"] for thing in things}
