"""The daemons of node 0 that make it the control plane."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from cluster import flags, host, network, render
from cluster.api import ClusterError
from cluster.apiclient import ApiClient
from cluster.build import Binaries
from cluster.daemons import is_running, start_daemon
from cluster.flags import ControlPlaneFiles
from cluster.packages import SYSTEM_PATH
from cluster.plan import API_PORT, ClusterPlan

ETCD_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"


@dataclass(frozen=True)
class ControlPlaneDaemons:
    """Starts them and waits for them."""

    plan: ClusterPlan
    files: ControlPlaneFiles
    binaries: Binaries

    @property
    def logs(self) -> Path:
        """Folder of NAME.log files."""
        return self.plan.data_dir / "logs"

    def start_api(self, host_port: int) -> None:
        """Start etcd, the API server and the relay that leads to it from the host's loopback."""
        self.logs.mkdir()
        server = flags.apiserver(
            self.binaries["kube-apiserver"],
            self.files,
            address=self.plan.node(0).address,
            port=API_PORT,
            etcd_url=ETCD_URL,
        )
        self._start("etcd", flags.etcd(self.binaries["etcd"], self.files, ETCD_URL, ETCD_PEER_URL))
        self._start("kube-apiserver", server)
        inside, on_host = network.api_relay(self.plan, host_port)
        self._start("relay-inside", inside)
        self._start("relay-host", on_host, on_host=True)

    def wait_for_api(self, api: ApiClient) -> None:
        """Wait until the API server serves, or say why it does not."""
        self._wait("the API server", ("etcd", "kube-apiserver"), api.is_ready, 60)

    def start_controllers(self) -> None:
        """Start controller manager and scheduler."""
        manager = self.binaries["kube-controller-manager"]
        self._start("kube-controller-manager", flags.controller_manager(manager, self.files, port=10257))
        self._start(
            "kube-scheduler", flags.scheduler(self.binaries["kube-scheduler"], self.files, port=10259)
        )

    def start_dns(self, kubectl_apply: list[str]) -> None:
        """Start CoreDNS as a plain process on node 0's address."""
        host.run(kubectl_apply, text=render.dns_rbac())
        corefile = self.plan.run_dir / "Corefile"
        corefile.write_text(render.corefile(self.plan, self.files.kubeconfig(render.DNS.key)))
        self._start("coredns", [self.binaries["coredns"], "-conf", str(corefile)])

    def wait_for_dns(self) -> None:
        """Wait until CoreDNS has read the cluster's Services."""
        url = f"http://{self.plan.node(0).address}:8181/ready"
        script = f"import urllib.request as r; r.build_opener(r.ProxyHandler({{}})).open('{url}', timeout=2)"
        probe = network.enter(self.plan.node(0).netns, sys.executable, "-c", script)
        self._wait("DNS", ("coredns",), lambda: host.succeeds(probe), 30)

    def _start(self, name: str, command: list[str], *, on_host: bool = False) -> None:
        start_daemon(
            name,
            command,
            cgroup=f"{self.plan.cgroup}/control-plane",
            folder=self.plan.run_dir,
            logs=self.logs,
            netns=None if on_host else self.plan.node(0).netns,
            path=SYSTEM_PATH,
        )

    def _wait(self, what: str, daemons: tuple[str, ...], is_true: host.Condition, timeout_s: float) -> None:
        """Wait for a condition, or for the first of the daemons to end."""

        def ended() -> list[str]:
            return [name for name in daemons if not is_running(self.plan.run_dir / f"{name}.pid")]

        def log() -> str:
            return host.tail(self.logs / f"{(ended() or daemons)[-1]}.log")

        host.wait_for(what, lambda: is_true() or bool(ended()), timeout_s, log)
        if ended():
            raise ClusterError(f"{' and '.join(ended())} ended. {log()}")
