"""The integration profile: a real API server and etcd on loopback, without kubelets. Any user, any Linux.

`control_plane()` is a context manager; a pytest fixture is one `with` around it. What it starts ends with the
process that started it, also when that one is killed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import build, flags, host, pki, render
from cluster.api import ClusterError
from cluster.apiclient import ApiClient
from cluster.flags import ControlPlaneFiles
from cluster.native import free_ports


@dataclass(frozen=True)
class ControlPlane:
    """A running API server.

    Attributes:
        server: its URL, on loopback.
        token: a bearer token of the cluster administrator.
        binaries: what was built for it; `kubectl` is among them.
    """

    server: str
    ca_file: Path
    token: str
    kubeconfig: Path
    audit_log: Path
    binaries: build.Binaries

    def kubectl(self, *args: str) -> list[str]:
        """The command line of kubectl with the administrator's credentials."""
        return [self.binaries["kubectl"], "--kubeconfig", str(self.kubeconfig), *args]


@contextmanager
def child(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon for as long as the context lasts; the kernel kills it if this process dies first."""
    line = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    with open(log, "wb") as output:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=20)


@contextmanager
def control_plane(*, controllers: bool = False, scheduler: bool = False) -> Iterator[ControlPlane]:
    """Run etcd and an API server, and with them what else is asked for.

    Call it from a thread that lives as long as the context, such as the main one: the kernel ends the daemons
    with the thread that started them.

    Args:
        controllers: also kube-controller-manager: garbage collection, service accounts, autoscalers.
        scheduler: also kube-scheduler.

    Yields:
        The API server, ready, with its built-in namespaces and roles.

    Raises:
        ClusterError: something could not be built or did not come up; the text has the end of its log.
    """
    if shutil.which("setpriv") is None:
        raise ClusterError("setpriv is not on PATH; it comes with the package util-linux.")
    binaries = build.ensure("integration")
    with tempfile.TemporaryDirectory(prefix="stoker-api-") as folder, ExitStack() as stack:
        files = ControlPlaneFiles(Path(folder) / "secrets", Path(folder) / "data")
        files.secrets.mkdir(mode=0o700)
        files.data.mkdir()
        plane = start_api(files, binaries, stack)
        wanted = []
        if controllers:
            wanted.append(flags.controller_manager(binaries["kube-controller-manager"], files, port=0))
        if scheduler:
            wanted.append(flags.scheduler(binaries["kube-scheduler"], files, port=0))
        for command in wanted:
            stack.enter_context(child(command, files.data / f"{Path(command[0]).name}.log"))
        yield plane


def start_api(files: ControlPlaneFiles, binaries: build.Binaries, stack: ExitStack) -> ControlPlane:
    """Start etcd and the API server on free ports and wait until both serve."""
    port, etcd_port, peer_port = free_ports(3)
    server, etcd_url = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{etcd_port}"
    secrets = pki.create(files.secrets, ["127.0.0.1"], {})
    for identity in secrets.tokens:
        secrets.kubeconfig(identity, server)
    etcd = flags.etcd(binaries["etcd"], files, etcd_url, f"http://127.0.0.1:{peer_port}")
    stack.enter_context(child(etcd, files.data / "etcd.log"))
    command = flags.apiserver(
        binaries["kube-apiserver"], files, address="127.0.0.1", port=port, etcd_url=etcd_url
    )
    log = files.data / "kube-apiserver.log"
    # Nothing may be told to reach an API server at a loopback address, so it announces itself to nobody.
    process = stack.enter_context(child([*command, "--endpoint-reconciler-type=none"], log))
    token = secrets.tokens[render.ADMIN]
    api = ApiClient(server, files.ca, token)

    def is_settled() -> bool:
        return process.poll() is not None or api.is_ready()

    host.wait_for("the API server", is_settled, 60, lambda: host.tail(log))
    if process.poll() is not None:
        raise ClusterError(f"kube-apiserver ended. {host.tail(log)}")
    kubeconfig = files.kubeconfig(render.ADMIN.key)
    return ControlPlane(server, files.ca, token, kubeconfig, files.audit_log, binaries)
