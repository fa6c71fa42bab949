"""Configuration files of a native cluster as text. Pure: plans and paths in, file contents out."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.plan import DOMAIN, POD_CIDR, ClusterPlan, NodePlan

PAUSE_IMAGE = "localhost/stoker-pause:1"


@dataclass(frozen=True)
class Identity:
    """One line of the static token file.

    Attributes:
        key: file-name-safe name of the credentials.
        user: the Kubernetes user name.
        groups: its groups.
    """

    key: str
    user: str
    groups: tuple[str, ...] = ()


ADMIN = Identity("admin", "kubernetes-admin", ("system:masters",))
CONTROLLER_MANAGER = Identity("controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("scheduler", "system:kube-scheduler")
PROXY = Identity("proxy", "system:kube-proxy")
DNS = Identity("dns", "system:coredns")
SYSTEM_IDENTITIES = (ADMIN, CONTROLLER_MANAGER, SCHEDULER, PROXY, DNS)


def node_identity(name: str) -> Identity:
    """What the kubelet of a node is to the API server."""
    return Identity(f"node-{name}", f"system:node:{name}", ("system:nodes",))


def token_file(tokens: dict[Identity, str]) -> str:
    """The API server's static token file."""
    lines = []
    for identity, token in tokens.items():
        groups = f',"{",".join(identity.groups)}"' if identity.groups else ""
        lines.append(f"{token},{identity.user},{identity.key}{groups}")
    return "\n".join(lines) + "\n"


def kubeconfig(server: str, ca_file: Path, token: str, ca_pem: bytes | None = None) -> str:
    """A kubeconfig with one cluster and one user.

    Args:
        ca_pem: put this certificate into the file itself instead of naming `ca_file`.
    """
    cluster: dict[str, Any] = {"server": server}
    if ca_pem is None:
        cluster["certificate-authority"] = str(ca_file)
    else:
        cluster["certificate-authority-data"] = base64.b64encode(ca_pem).decode()
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stoker",
            "clusters": [{"name": "stoker", "cluster": cluster}],
            "users": [{"name": "stoker", "user": {"token": token}}],
            "contexts": [{"name": "stoker", "context": {"cluster": "stoker", "user": "stoker"}}],
        },
        sort_keys=False,
    )


def audit_policy() -> str:
    """Who did what to which object, without bodies; the event that says a request arrived is left out."""
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        },
        sort_keys=False,
    )


def containerd_config(node: NodePlan, *, cni_bin: str, runc: str, snapshotter: str) -> str:
    """Render containerd's configuration, version 3.

    Every path it would take by default is replaced, so that nothing of two nodes (or of a containerd that the
    host runs for itself) meets, and so that all of it vanishes with the node's folders.
    """
    run, data = node.run_dir, node.data_dir
    runtime = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""version = 3
root = "{data}/containerd"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = "{node.containerd_socket}"

[plugins.'io.containerd.shim.v1.manager']
socket_dir = "{run}/s"

[plugins.'io.containerd.internal.v1.opt']
path = "{data}/opt"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "{snapshotter}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[{runtime}]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[{runtime}.containerd]
default_runtime_name = "runc"

[{runtime}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{runtime}.containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "{run}/runc"
SystemdCgroup = false

[{runtime}.cni]
bin_dirs = ["{cni_bin}"]
conf_dir = "{run}/cni"
"""


def cni_config(node: NodePlan) -> str:
    """The pod network of one node."""
    return cni_conflist(node.pod_cidr, node.run_dir / "ipam")


def cni_conflist(pod_cidr: str, addresses_dir: Path) -> str:
    """How pods are connected whose node has a range of addresses and remembers in a folder which are taken.

    `ptp` routes every packet through the node. With a bridge, a pod that reaches its neighbour by a Service
    address depends on the br_netfilter module, which not every kernel has loaded.
    """
    ipam = {
        "type": "host-local",
        "dataDir": str(addresses_dir),
        "ranges": [[{"subnet": pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "stoker", "plugins": plugins}, indent=2)


def kubelet_config(plan: ClusterPlan, node: NodePlan, *, ca_file: Path, cert: Path, key: Path) -> str:
    """The kubelet's configuration: real authentication, no eviction by disk, quick status for tests."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "tlsCertFile": str(cert),
        "tlsPrivateKeyFile": str(key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca_file)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [plan.node(0).address],
        "clusterDomain": DOMAIN,
        "resolvConf": f"{plan.run_dir}/resolv.conf",
        "podLogsDir": str(node.pod_logs),
        "volumePluginDir": f"{node.data_dir}/volume-plugins",
        "makeIPTablesUtilChains": False,
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 12,
        "serializeImagePulls": False,
        "logging": {"verbosity": 2},
    }
    return yaml.safe_dump(config, sort_keys=False)


def kube_proxy_config(node: NodePlan, kubeconfig_file: Path) -> str:
    """kube-proxy's configuration: nftables, and the host's connection-tracking limits left alone."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node.name,
        "clusterCIDR": POD_CIDR,
        "clientConnection": {"kubeconfig": str(kubeconfig_file)},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
    }
    return yaml.safe_dump(config, sort_keys=False)


def corefile(plan: ClusterPlan, kubeconfig_file: Path) -> str:
    """CoreDNS for the cluster's own names and no others: there is nowhere to forward a query to."""
    return f""".:53 {{
    bind {plan.node(0).address}
    errors
    ready {plan.node(0).address}:8181
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig_file}
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""


def dns_rbac() -> str:
    """What CoreDNS may read."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["services", "pods", "namespaces"],
                "verbs": ["list", "watch"],
            },
            {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "verbs": ["list", "watch"],
            },
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"kind": "User", "name": DNS.user, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    return yaml.safe_dump_all([role, binding], sort_keys=False)
