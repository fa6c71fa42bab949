"""What scenarios may ask of a cluster, whichever back end runs it. No I/O here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class ClusterError(Exception):
    """The cluster cannot do what was asked; the text says why.

    Attributes:
        next_step: what a person does now, where the place that raises knows better than `cluster.failures`,
            which goes by what programs print; `{again}` in it stands for the command that failed.
    """

    def __init__(self, text: str, *, next_step: str | None = None) -> None:
        super().__init__(text)
        self.next_step = next_step


class Cluster(Protocol):
    """A running (or not yet running) cluster. Every method blocks until what it names is true.

    Attributes:
        name: tells clusters on one machine apart.
        kubeconfig: cluster-admin credentials that work from the host's own network.
        audit_log: the API server's audit log, JSON lines at metadata level, stage ResponseComplete and later.
    """

    name: str
    kubeconfig: Path
    audit_log: Path

    def prepare(self) -> None:
        """Do what `up` would do first where nothing is built yet and what may go on beside an image's build.

        Raises:
            ClusterError: a prerequisite is missing, or a compile failed.
        """

    def up(self, *, num_nodes: int = 2, gpus_per_node: int = 4) -> None:
        """Bring the cluster up: every node Ready, DNS answering, `nvidia.com/gpu` in each node's capacity.

        Idempotent: a cluster that already runs with these nodes is left as it is.

        Raises:
            ClusterError: a prerequisite is missing or a component did not come up in time.
        """

    def down(self) -> None:
        """Remove everything `up` made, also after an `up` that crashed. Idempotent."""

    def node_names(self) -> list[str]:
        """Names of the nodes that run, the one with the control plane first."""

    def load_image(self, archive: Path) -> None:
        """Put the images of an archive (OCI, or as `docker save` writes it) on every node."""

    def add_node(self) -> str:
        """Add one worker and wait until it is Ready. Images loaded before are on it, too."""

    def kill_node(self, name: str) -> None:
        """Cut a worker's power: all its processes end at once, its Node object stays."""

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` in the network of the control-plane node."""

    def kubectl(self, *args: str) -> list[str]:
        """The command line of kubectl with this cluster's credentials, for the host's own network."""

    def tool(self, name: str) -> str:
        """Path of `kubectl` or `helm` in a version that fits this cluster."""
