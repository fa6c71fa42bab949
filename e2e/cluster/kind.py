"""The kind back end, for machines with a Docker engine: thin, because kind does the work."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster import build, host, render
from cluster.api import ClusterError
from cluster.plan import NAME
from cluster.prerequisites import CLIENTS
from cluster.progress import say, step
from cluster.versions import cache_dir

# What has the image volumes that oci:// models are mounted with.
MIN_KUBERNETES = (1, 33)
MIN_CONTAINERD = (2, 1)


def kind_config(name: str, num_nodes: int, folder: Path) -> str:
    """Render the configuration: one control plane, workers, and an audit log that the host can read.

    Args:
        folder: holds audit-policy.yaml and receives audit.log; mounted into the control-plane node.
    """
    server_args = [
        {"name": "audit-policy-file", "value": "/stoker/audit-policy.yaml"},
        {"name": "audit-log-path", "value": "/stoker/audit.log"},
        {"name": "audit-log-maxsize", "value": "1000"},
    ]
    volume = {"name": "stoker", "hostPath": "/stoker", "mountPath": "/stoker", "readOnly": False}
    patch: dict[str, Any] = {
        "kind": "ClusterConfiguration",
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "apiServer": {"extraArgs": server_args, "extraVolumes": [volume]},
    }
    patches = [patch]
    if num_nodes > 1:
        # Every node takes pods, as in the native back end. A lone node's taint is removed by kind itself.
        patches.append({"kind": "InitConfiguration", "nodeRegistration": {"taints": []}})
    control_plane = {
        "role": "control-plane",
        "kubeadmConfigPatches": [yaml.safe_dump(found, sort_keys=False) for found in patches],
        "extraMounts": [{"hostPath": str(folder), "containerPath": "/stoker"}],
    }
    config = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        # On by default from Kubernetes 1.35 only.
        "featureGates": {"ImageVolume": True},
        "nodes": [control_plane, *({"role": "worker"} for _ in range(num_nodes - 1))],
    }
    return yaml.safe_dump(config, sort_keys=False)


def gpu_patch(amount: int) -> str:
    """The JSON patch that puts GPUs on a node without any."""
    paths = [f"/status/{field}/nvidia.com~1gpu" for field in ("capacity", "allocatable")]
    return json.dumps([{"op": "add", "path": path, "value": str(amount)} for path in paths])


def too_old(nodes: Iterable[Mapping[str, Any]]) -> str | None:
    """What is too old on the nodes for image volumes, None when nothing is."""
    for node in nodes:
        info = node["status"]["nodeInfo"]
        parts = {
            "Kubernetes": (info["kubeletVersion"], MIN_KUBERNETES),
            "containerd": (info["containerRuntimeVersion"], MIN_CONTAINERD),
        }
        for name, (text, wanted) in parts.items():
            found = re.search(r"(\d+)\.(\d+)", text)
            if found is None or (int(found[1]), int(found[2])) < wanted:
                needed = ".".join(map(str, wanted))
                return f"node {node['metadata']['name']} has {name} {text}, and image volumes need {needed}"
    return None


class KindCluster:
    """A kind cluster; see `cluster.api.Cluster` for what the methods promise."""

    def __init__(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ClusterError(
                f"cluster name {name!r}: use 1 to 20 lower-case letters, digits and inner dashes."
            )
        self.name = name
        self.folder = cache_dir() / "kind" / name
        self.kubeconfig = self.folder / "kubeconfig"
        self.audit_log = self.folder / "audit.log"

    def node_names(self) -> list[str]:
        names = host.run(["kind", "get", "nodes", "--name", self.name]).split()
        running = host.run(["docker", "ps", "--format", "{{.Names}}"]).split()
        return sorted((name for name in names if name in running), key=lambda name: ("worker" in name, name))

    def up(self, *, num_nodes: int = 2, gpus_per_node: int = 4) -> None:
        if self.name in host.run(["kind", "get", "clusters"]).split():
            if len(self.node_names()) == num_nodes and self.kubeconfig.exists():
                say(f"cluster {self.name} already runs.")
                return
            self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "audit-policy.yaml").write_text(render.audit_policy())
        command = ["kind", "create", "cluster", "--name", self.name, "--config", "-", "--wait", "180s"]
        with step(f"kind cluster {self.name} with {num_nodes} nodes"):
            config = kind_config(self.name, num_nodes, self.folder)
            host.run([*command, "--kubeconfig", str(self.kubeconfig)], text=config, timeout_s=600)
            host.run(
                self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"),
                timeout_s=150,
            )
            self._refuse_old_nodes()
            for node in self.node_names():
                patch = ["--subresource=status", "--type=json", f"--patch={gpu_patch(gpus_per_node)}"]
                host.run(self.kubectl("patch", "node", node, *patch))

    def _refuse_old_nodes(self) -> None:
        answer = host.run(self.kubectl("get", "nodes", "--output=json"))
        problem = too_old(json.loads(answer)["items"])
        if problem:
            self.down()
            raise ClusterError(f"{problem}: use kind 0.30 or newer, whose node image has them.")

    def down(self) -> None:
        host.run(["kind", "delete", "cluster", "--name", self.name], timeout_s=180)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def load_image(self, archive: Path) -> None:
        host.run(["kind", "load", "image-archive", str(archive), "--name", self.name], timeout_s=600)

    def add_node(self) -> str:
        raise ClusterError("kind cannot add a node to a cluster that runs; bring it up with more nodes.")

    def kill_node(self, name: str) -> None:
        names = self.node_names()
        if name not in names:
            raise ClusterError(f"node {name} does not run; these do: {', '.join(names)}.")
        if name == names[0]:
            raise ClusterError(f"node {name} carries the control plane; take the cluster down instead.")
        host.run(["docker", "kill", name])

    def inside(self, *command: str) -> list[str]:
        node = f"{self.name}-control-plane"
        if os.geteuid() == 0:
            pid = host.run(["docker", "inspect", "--format", "{{.State.Pid}}", node]).strip()
            return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command]
        return ["docker", "exec", "--interactive", node, *command]

    def kubectl(self, *args: str) -> list[str]:
        return [self.tool("kubectl"), "--kubeconfig", str(self.kubeconfig), *args]

    def tool(self, name: str) -> str:
        return shutil.which(name) or build.ensure(CLIENTS[name])[name]
