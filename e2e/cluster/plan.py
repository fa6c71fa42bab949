"""Where everything of a native cluster is: names, addresses, folders. Pure.

Each cluster lives in network namespaces of its own, so two clusters may use the same addresses. Node 0
carries the control plane and routes between the others; every node has one address, and node 0 uses its one
on every link:

    node 0  10.200.0.1  --veth--  node 1  10.200.0.2        pods of node N: 10.244.N.0/24
                        --veth--  node 2  10.200.0.3        services:       10.96.0.0/16
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.api import ClusterError

SERVICE_CIDR = "10.96.0.0/16"
POD_CIDR = "10.244.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DOMAIN = "cluster.local"
API_PORT = 6443
# Credentials for all of them are made at once: the API server reads its token file only when it starts.
MAX_NODES = 16
# Unix socket paths end at 108 bytes and the longest one here adds 60 to the name.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")


@dataclass(frozen=True)
class NodePlan:
    """One node.

    Attributes:
        index: 0 for the node with the control plane.
        address: its only address; also the one its kubelet reports.
        pod_cidr: the range its pods get addresses from.
        netns: its network namespace.
        run_dir: sockets and other things that need not outlive a reboot.
        data_dir: images, volumes, logs; on disk.
        cgroup: the parent of its pods, a path below each hierarchy's root.
    """

    index: int
    name: str
    address: str
    pod_cidr: str
    netns: str
    run_dir: Path
    data_dir: Path
    cgroup: str

    @property
    def containerd_socket(self) -> Path:
        """Where this node's containerd listens."""
        return self.run_dir / "containerd.sock"

    @property
    def pod_logs(self) -> Path:
        """Where the kubelet keeps container logs."""
        return self.data_dir / "pod-logs"

    @property
    def daemons_cgroup(self) -> str:
        """The cgroup of this node's own daemons and of the shims they start."""
        return f"{self.cgroup}-daemons"

    @property
    def link(self) -> str:
        """Name of node 0's end of the link to this node."""
        return f"node{self.index}"


@dataclass(frozen=True)
class ClusterPlan:
    """A native cluster by its name."""

    name: str
    run_root: Path = Path("/run/stoker")
    data_root: Path = Path("/var/lib/stoker")

    def __post_init__(self) -> None:
        """Refuse names that would not fit into host names and socket paths."""
        if not NAME.fullmatch(self.name):
            raise ClusterError(
                f"cluster name {self.name!r}: use 1 to 20 lower-case letters, digits and inner dashes."
            )

    @property
    def run_dir(self) -> Path:
        """Pid files, sockets and credentials."""
        return self.run_root / self.name

    @property
    def data_dir(self) -> Path:
        """Images, volumes, etcd, logs."""
        return self.data_root / self.name

    @property
    def cgroup(self) -> str:
        """The cgroup that holds every process of the cluster, pods included."""
        return f"stoker-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        """Cluster-admin credentials for the host's own network."""
        return self.run_dir / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log."""
        return self.data_dir / "audit.log"

    @property
    def api_socket(self) -> Path:
        """Unix socket that leads from the host into the API server's network namespace."""
        return self.run_dir / "api.sock"

    @property
    def api_url(self) -> str:
        """The API server as the nodes see it."""
        return f"https://{self.node(0).address}:{API_PORT}"

    def node(self, index: int) -> NodePlan:
        """The plan of one node.

        Raises:
            ClusterError: more nodes than the address plan has room for.
        """
        if not 0 <= index < MAX_NODES:
            raise ClusterError(f"node {index} is outside 0..{MAX_NODES - 1}.")
        return NodePlan(
            index=index,
            name=f"{self.name}-{index}",
            address=f"10.200.0.{index + 1}",
            pod_cidr=f"10.244.{index}.0/24",
            netns=f"stoker-{self.name}-{index}",
            run_dir=self.run_dir / f"n{index}",
            data_dir=self.data_dir / f"n{index}",
            cgroup=f"{self.cgroup}/n{index}",
        )
