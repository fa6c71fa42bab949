"""What kind and the nodes it makes are told. Pure: names and numbers in, text and command lines out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import render
from cluster.nodeimage import REPOSITORY, NodeImage
from cluster.plan import POD_CIDR

# What has the image volumes that oci:// models are mounted with.
MIN_KUBERNETES = (1, 33)
MIN_CONTAINERD = (2, 1)
# kind writes the older of them for Kubernetes before 1.36; a patch for the other one is left out.
KUBEADM_VERSIONS = ("v1beta3", "v1beta4")
NODE_IMAGES = "/stoker-images"
SERVER_FLAGS = {
    "audit-policy-file": "/stoker/audit-policy.yaml",
    "audit-log-path": "/stoker/audit.log",
    "audit-log-maxsize": "1000",
}
# As in the native back end: what scenarios wait for takes seconds.
CONTROLLER_FLAGS = {
    "node-monitor-period": "2s",
    "node-monitor-grace-period": "16s",
    "horizontal-pod-autoscaler-sync-period": "2s",
}
# By default a Service leads to a pod up to a second after that is ready; scenarios ask at once.
PROXY_PATCH = {
    "kind": "KubeProxyConfiguration",
    "iptables": {"minSyncPeriod": "100ms"},
    "nftables": {"minSyncPeriod": "100ms"},
}


def kind_config(
    name: str,
    num_nodes: int,
    folder: Path,
    images: Path,
    *,
    is_cgroup_v1: bool = False,
    own: NodeImage | None = None,
) -> str:
    """Render the configuration: one control plane, workers, and an audit log that the host can read.

    Args:
        folder: holds audit-policy.yaml and receives audit.log; mounted into the control-plane node.
        images: folder of image archives, mounted into every node.
        is_cgroup_v1: kubelets refuse to run there unless told otherwise (Kubernetes 1.35 and newer).
        own: the nodes are made from this image of ours, which has other names for its pods' images and no
            network of its own.
    """
    patches = [_cluster_patch(version, own) for version in KUBEADM_VERSIONS]
    patches += [_kubelet_patch(is_cgroup_v1=is_cgroup_v1), PROXY_PATCH]
    if num_nodes > 1:
        # Every node takes pods, as in the native back end. A lone node's taint is removed by kind itself.
        patches.append({"kind": "InitConfiguration", "nodeRegistration": {"taints": []}})
    control_plane = {
        "role": "control-plane",
        "kubeadmConfigPatches": [yaml.safe_dump(found, sort_keys=False) for found in patches],
        "extraMounts": [{"hostPath": str(folder), "containerPath": "/stoker"}, _archives(images)],
    }
    config: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": name,
        # On by default from Kubernetes 1.35 only.
        "featureGates": {"ImageVolume": True},
        "nodes": [
            control_plane,
            *({"role": "worker", "extraMounts": [_archives(images)]} for _ in range(num_nodes - 1)),
        ],
    }
    if own is not None:
        config["networking"] = {"disableDefaultCNI": True, "kubeProxyMode": "nftables", "podSubnet": POD_CIDR}
    return yaml.safe_dump(config, sort_keys=False)


def _archives(images: Path) -> dict[str, Any]:
    return {"hostPath": str(images), "containerPath": NODE_IMAGES, "readOnly": True}


def _cluster_patch(version: str, own: NodeImage | None) -> dict[str, Any]:
    def arguments(flags: Mapping[str, str]) -> Any:
        if version == "v1beta3":
            return dict(flags)
        return [{"name": name, "value": value} for name, value in flags.items()]

    volume = {"name": "stoker", "hostPath": "/stoker", "mountPath": "/stoker", "readOnly": False}
    etcd: dict[str, Any] = {"extraArgs": arguments({"unsafe-no-fsync": "true"})}
    patch: dict[str, Any] = {
        "kind": "ClusterConfiguration",
        "apiVersion": f"kubeadm.k8s.io/{version}",
        "apiServer": {"extraArgs": arguments(SERVER_FLAGS), "extraVolumes": [volume]},
        "controllerManager": {"extraArgs": arguments(CONTROLLER_FLAGS)},
        "etcd": {"local": etcd},
    }
    if own is not None:
        patch |= {"imageRepository": REPOSITORY, "dns": {"imageTag": own.coredns}}
        etcd["imageTag"] = own.etcd
    return patch


def _kubelet_patch(*, is_cgroup_v1: bool) -> dict[str, Any]:
    patch: dict[str, Any] = {
        "kind": "KubeletConfiguration",
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 12,
    }
    if is_cgroup_v1:
        patch["failCgroupV1"] = False
    return patch


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


@dataclass(frozen=True)
class NodeAddress:
    """Where a node and its pods are."""

    name: str
    address: str
    pod_cidr: str


def addresses(nodes: Iterable[Mapping[str, Any]]) -> list[NodeAddress] | None:
    """Addresses of all nodes; None while one of them has no range for its pods yet."""
    found = []
    for node in nodes:
        cidr = node["spec"].get("podCIDR")
        internal = [
            entry["address"] for entry in node["status"].get("addresses", []) if entry["type"] == "InternalIP"
        ]
        if not cidr or not internal:
            return None
        found.append(NodeAddress(node["metadata"]["name"], internal[0], cidr))
    return found


def pod_network(node: NodeAddress, others: Iterable[NodeAddress]) -> str:
    """The script that connects the pods of a node of ours: kind's own network is an image from a registry.

    What leaves the pods' range leaves with the node's address; run a second time, it changes nothing.
    """
    conflist = render.cni_conflist(node.pod_cidr, Path("/run/cni-ipam"))
    masquerade = f"POSTROUTING -s {POD_CIDR} ! -d {POD_CIDR} -j MASQUERADE"
    lines = [
        "set -eu",
        *(f"ip route replace {other.pod_cidr} via {other.address}" for other in others if other != node),
        f"iptables -w -t nat -C {masquerade} 2>/dev/null || iptables -w -t nat -A {masquerade}",
        # Last, and all at once: the kubelet calls the node ready when it sees it.
        f"cat > /etc/cni/net.d/.new <<'END'\n{conflist}\nEND",
        "mv /etc/cni/net.d/.new /etc/cni/net.d/10-stoker.conflist",
    ]
    return "\n".join(lines) + "\n"
