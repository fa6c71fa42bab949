"""The daemons of one node: containerd, the kubelet, kube-proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cluster import cgroups, flags, host, mounts, network, packages, render
from cluster.api import ClusterError
from cluster.build import Binaries
from cluster.daemons import is_running, start_daemon
from cluster.flags import ControlPlaneFiles
from cluster.plan import ClusterPlan, NodePlan

DAEMONS = ("containerd", "kubelet", "kube-proxy")


@dataclass(frozen=True)
class NodeDaemons:
    """Starts them and gives images to them."""

    plan: ClusterPlan
    node: NodePlan
    files: ControlPlaneFiles
    binaries: Binaries

    @property
    def logs(self) -> Path:
        """Folder of NAME.log files."""
        return self.node.data_dir / "logs"

    def prepare(self) -> None:
        """Lay out folders, configuration, network and cgroups."""
        node = self.node
        for folder in (node.run_dir / "cni", self.logs, node.pod_logs, node.data_dir / "volume-plugins"):
            folder.mkdir(parents=True)
        mounts.prepare(self.plan, node)
        if node.index:
            for command in network.worker(self.plan, node):
                host.run(command)
        cgroups.make(node.cgroup)
        cgroups.make(node.daemons_cgroup)
        runc = packages.find("runc")
        if runc is None:
            raise ClusterError("runc is not on PATH.")
        config = render.containerd_config(
            node, cni_bin=self.binaries.folder("ptp"), runc=runc, snapshotter=snapshotter(node.data_dir)
        )
        secrets = self.files.secrets
        kubelet = render.kubelet_config(
            self.plan,
            node,
            ca_file=self.files.ca,
            cert=secrets / f"node-{node.name}.crt",
            key=secrets / f"node-{node.name}.key",
        )
        (node.run_dir / "containerd.toml").write_text(config)
        (node.run_dir / "cni" / "10-stoker.conflist").write_text(render.cni_config(node))
        (node.run_dir / "kubelet.yaml").write_text(kubelet)
        (node.run_dir / "kube-proxy.yaml").write_text(
            render.kube_proxy_config(node, self.files.kubeconfig(render.PROXY.key))
        )

    def start_containerd(self) -> None:
        """Start containerd and wait until it answers."""
        config = str(self.node.run_dir / "containerd.toml")
        self._start(
            "containerd", mounts.unshared(self.node, [self.binaries["containerd"], "--config", config])
        )
        host.wait_for(
            f"containerd of {self.node.name}",
            lambda: host.succeeds(self._ctr("version")),
            60,
            lambda: host.tail(self.logs / "containerd.log"),
        )

    def start_kubernetes(self) -> None:
        """Start kubelet and kube-proxy; the node becomes Ready on its own."""
        kubelet = flags.kubelet(self.binaries["kubelet"], self.files, self.node)
        containerd = int((self.node.run_dir / "containerd.pid").read_text())
        self._start("kubelet", mounts.joined(self.node, containerd, kubelet))
        self._start("kube-proxy", flags.kube_proxy(self.binaries["kube-proxy"], self.node))

    def import_image(self, archive: str) -> None:
        """Put the images of an archive into this node's store."""
        said = host.run(self._ctr("images", "import", "--local", archive), timeout_s=300)
        for tag in re.findall(r"^unpacking (\S+) ", said, re.MULTILINE):
            # An image that took over an older one's tag is found by that tag only, and image volumes look for
            # it by its hash. A label that is not containerd's own makes it look again and add the hash.
            host.run(self._ctr("images", "label", tag, "io.cri-containerd.image=imported"))

    def is_running(self) -> bool:
        """Whether every daemon of the node runs."""
        return all(is_running(self.node.run_dir / f"{name}.pid") for name in DAEMONS)

    def _ctr(self, *args: str) -> list[str]:
        return [
            self.binaries["ctr"],
            "--address",
            str(self.node.containerd_socket),
            "--namespace",
            "k8s.io",
            *args,
        ]

    def _start(self, name: str, command: list[str]) -> None:
        start_daemon(
            name,
            command,
            cgroup=self.node.daemons_cgroup,
            folder=self.node.run_dir,
            logs=self.logs,
            netns=self.node.netns,
            # containerd finds its shim on PATH.
            path=f"{self.binaries.folder('containerd')}:{packages.SYSTEM_PATH}",
        )


def snapshotter(folder: Path) -> str:
    """How containerd lays images out: overlay mounts, or copies where the disk is an overlay itself."""
    kind = host.run(["stat", "--file-system", "--format=%T", str(folder)]).strip()
    return "native" if kind == "overlayfs" else "overlayfs"
