"""Command lines of the Kubernetes components, for the native cluster and the integration profile. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.plan import DOMAIN, SERVICE_CIDR, NodePlan


@dataclass(frozen=True)
class ControlPlaneFiles:
    """Where the control plane's inputs and outputs are: one folder for secrets, one for data."""

    secrets: Path
    data: Path

    @property
    def ca(self) -> Path:
        """Certificate of the cluster's authority."""
        return self.secrets / "ca.crt"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log."""
        return self.data / "audit.log"

    def kubeconfig(self, key: str) -> Path:
        """Credentials of one identity for use inside the cluster's network."""
        return self.secrets / f"{key}.kubeconfig"


def etcd(binary: str, files: ControlPlaneFiles, client_url: str, peer_url: str) -> list[str]:
    """One etcd that does not wait for the disk: its data is worth nothing after a crash."""
    return [
        binary,
        "--name=etcd",
        f"--data-dir={files.data}/etcd",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=etcd={peer_url}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(binary: str, files: ControlPlaneFiles, *, address: str, port: int, etcd_url: str) -> list[str]:
    """The API server with static tokens, RBAC, the default admission set and an audit log."""
    secrets = files.secrets
    return [
        binary,
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--etcd-servers={etcd_url}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--tls-cert-file={secrets}/apiserver.crt",
        f"--tls-private-key-file={secrets}/apiserver.key",
        f"--client-ca-file={files.ca}",
        f"--token-auth-file={secrets}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={secrets}/service-account.key",
        f"--service-account-signing-key-file={secrets}/service-account.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-certificate-authority={files.ca}",
        f"--kubelet-client-certificate={secrets}/kubelet-client.crt",
        f"--kubelet-client-key={secrets}/kubelet-client.key",
        f"--cert-dir={files.data}/apiserver",
        f"--audit-policy-file={secrets}/audit-policy.yaml",
        f"--audit-log-path={files.audit_log}",
        "--audit-log-maxsize=1000",
        "--profiling=false",
    ]


def controller_manager(binary: str, files: ControlPlaneFiles, *, port: int) -> list[str]:
    """The controllers.

    A node counts as lost after 16 s (by default 40 s) and autoscalers look every 2 s (15 s), so that
    scenarios about them take seconds.

    Args:
        port: of its own endpoints; 0 for none.
    """
    return [
        binary,
        f"--kubeconfig={files.kubeconfig('controller-manager')}",
        f"--authentication-kubeconfig={files.kubeconfig('controller-manager')}",
        f"--authorization-kubeconfig={files.kubeconfig('controller-manager')}",
        f"--root-ca-file={files.ca}",
        f"--service-account-private-key-file={files.secrets}/service-account.key",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={files.data}/controller-manager",
        f"--flex-volume-plugin-dir={files.data}/volume-plugins",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=16s",
        "--horizontal-pod-autoscaler-sync-period=2s",
    ]


def scheduler(binary: str, files: ControlPlaneFiles, *, port: int) -> list[str]:
    """The scheduler.

    Args:
        port: of its own endpoints; 0 for none.
    """
    return [
        binary,
        f"--kubeconfig={files.kubeconfig('scheduler')}",
        f"--authentication-kubeconfig={files.kubeconfig('scheduler')}",
        f"--authorization-kubeconfig={files.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={files.data}/scheduler",
    ]


def kubelet(binary: str, files: ControlPlaneFiles, node: NodePlan) -> list[str]:
    """The kubelet of one node; two of them on one machine share no folder."""
    return [
        binary,
        f"--config={node.run_dir}/kubelet.yaml",
        f"--kubeconfig={files.kubeconfig(f'node-{node.name}')}",
        f"--root-dir={node.data_dir}/kubelet",
        f"--cert-dir={node.data_dir}/kubelet-pki",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def kube_proxy(binary: str, node: NodePlan) -> list[str]:
    """kube-proxy of one node."""
    return [binary, f"--config={node.run_dir}/kube-proxy.yaml"]
