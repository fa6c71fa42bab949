"""The native back end: Kubernetes' own binaries as daemons, each node in a network namespace. Root only.

`up` writes secrets and files, lays out namespaces and cgroups, then starts etcd, the API server, containerd,
the controllers, the kubelets and DNS. `down` is in teardown.py and needs nothing but the cluster's name.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cluster import build, cgroups, host, images, network, packages, pki, render, teardown
from cluster.api import ClusterError
from cluster.apiclient import ApiClient
from cluster.controlplane import ControlPlaneDaemons
from cluster.flags import ControlPlaneFiles
from cluster.node import NodeDaemons
from cluster.plan import MAX_NODES, ClusterPlan
from cluster.progress import say, step
from cluster.state import State, load
from cluster.versions import cache_dir


class NativeCluster:
    """A cluster of network namespaces; see `cluster.api.Cluster` for what the methods promise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plan = ClusterPlan(name)
        self.kubeconfig = self.plan.kubeconfig
        self.audit_log = self.plan.audit_log
        self.files = ControlPlaneFiles(self.plan.run_dir / "secrets", self.plan.data_dir)

    # What the cluster is now.

    def state(self) -> State:
        """The remembered state.

        Raises:
            ClusterError: there is no such cluster.
        """
        state = load(self.plan.run_dir)
        if state is None:
            raise ClusterError(f"cluster {self.name} is not up.")
        return state

    def node_names(self) -> list[str]:
        return [self.plan.node(index).name for index in self.state().nodes]

    def api(self) -> ApiClient:
        """The API server as seen from the host, with the administrator's token."""
        token = (self.plan.run_dir / "admin.token").read_text()
        return ApiClient(f"https://127.0.0.1:{self.state().host_port}", self.files.ca, token)

    def inside(self, *command: str) -> list[str]:
        return network.enter(self.plan.node(0).netns, *command)

    def kubectl(self, *args: str) -> list[str]:
        return [self.tool("kubectl"), "--kubeconfig", str(self.kubeconfig), *args]

    def tool(self, name: str) -> str:
        return build.ensure("e2e")[name]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands on the same cluster out."""
        with host.locked(cache_dir() / "locks" / f"cluster-{self.name}"):
            yield

    # Changing it.

    def prepare(self) -> None:
        packages.ensure(packages.CLUSTER_PROGRAMS)
        build.ensure("e2e")

    def up(self, *, num_nodes: int = 2, gpus_per_node: int = 4) -> None:
        if not 1 <= num_nodes <= MAX_NODES:
            raise ClusterError(f"{num_nodes} nodes: a native cluster has 1 to {MAX_NODES}.")
        self.prepare()
        binaries = build.ensure("e2e")
        pause = images.pause_archive(binaries)
        with self.locked():
            wanted = (num_nodes, gpus_per_node)
            state = load(self.plan.run_dir)
            if (
                state is not None
                and (len(state.nodes), state.gpus_per_node) == wanted
                and self._is_whole(state)
            ):
                say(f"cluster {self.name} already runs.")
                return
            teardown.remove_everything(self.plan)
            with step(f"cluster {self.name}, nodes: {num_nodes}"):
                self._bring_up(binaries, pause, num_nodes, gpus_per_node)

    def down(self) -> None:
        with self.locked(), step(f"remove cluster {self.name}"):
            teardown.remove_everything(self.plan)

    def load_image(self, archive: Path) -> None:
        with self.locked():
            state = self.state()
            if images.holds(state.archives, archive.resolve()):
                return
            self._import(state.nodes, [str(archive.resolve())])
            kept = tuple(path for path in state.archives if path != str(archive.resolve()))
            dataclasses.replace(state, archives=(*kept, str(archive.resolve()))).save(self.plan.run_dir)

    def add_node(self) -> str:
        with self.locked():
            state = self.state()
            index = state.next_index
            node = self.plan.node(index)
            with step(f"node {node.name}"):
                daemons = self._node(index, build.ensure("e2e"))
                daemons.prepare()
                daemons.start_containerd()
                self._import((index,), list(state.archives))
                daemons.start_kubernetes()
                self._wait_for_nodes((index,), state.gpus_per_node)
            nodes = tuple(sorted((*state.nodes, index)))
            dataclasses.replace(state, nodes=nodes, next_index=index + 1).save(self.plan.run_dir)
            return node.name

    def kill_node(self, name: str) -> None:
        with self.locked():
            state = self.state()
            index = next((index for index in state.nodes if self.plan.node(index).name == name), None)
            if index is None:
                raise ClusterError(f"node {name} does not run; these do: {', '.join(self.node_names())}.")
            if index == 0:
                raise ClusterError(f"node {name} carries the control plane; take the cluster down instead.")
            teardown.remove_node(self.plan.node(index))
            nodes = tuple(other for other in state.nodes if other != index)
            dataclasses.replace(state, nodes=nodes).save(self.plan.run_dir)

    # Parts of `up`.

    def _is_whole(self, state: State) -> bool:
        return (
            state.is_ready
            and self.api().is_ready()
            and all(self._node(index, build.ensure("e2e")).is_running() for index in state.nodes)
        )

    def _node(self, index: int, binaries: build.Binaries) -> NodeDaemons:
        return NodeDaemons(self.plan, self.plan.node(index), self.files, binaries)

    def _bring_up(self, binaries: build.Binaries, pause: Path, num_nodes: int, gpus_per_node: int) -> None:
        state = State(tuple(range(num_nodes)), num_nodes, gpus_per_node, free_ports(1)[0], (str(pause),))
        self._write_files(state)
        for command in network.first_node(self.plan):
            host.run(command)
        cgroups.make(f"{self.plan.cgroup}/control-plane")
        control_plane = ControlPlaneDaemons(self.plan, self.files, binaries)
        control_plane.start_api(state.host_port)
        nodes = [self._node(index, binaries) for index in state.nodes]
        for node in nodes:
            node.prepare()
        with ThreadPoolExecutor() as pool:
            list(pool.map(NodeDaemons.start_containerd, nodes))
        self._import(state.nodes, list(state.archives))
        control_plane.wait_for_api(self.api())
        control_plane.start_controllers()
        for node in nodes:
            node.start_kubernetes()
        control_plane.start_dns(self.kubectl("apply", "--filename=-"))
        self._wait_for_nodes(state.nodes, gpus_per_node)
        control_plane.wait_for_dns()
        dataclasses.replace(state, is_ready=True).save(self.plan.run_dir)

    def _write_files(self, state: State) -> None:
        run_dir, node_plans = self.plan.run_dir, [self.plan.node(index) for index in range(MAX_NODES)]
        run_dir.mkdir(parents=True, mode=0o755)
        self.files.secrets.mkdir(mode=0o700)
        self.files.data.mkdir(parents=True)
        nodes = {node.name: node.address for node in node_plans}
        secrets = pki.create(self.files.secrets, ["127.0.0.1", self.plan.node(0).address], nodes)
        for identity in secrets.tokens:
            secrets.kubeconfig(identity, self.plan.api_url)
        pki.write_private(run_dir / "admin.token", secrets.tokens[render.ADMIN].encode())
        admin = render.kubeconfig(
            f"https://127.0.0.1:{state.host_port}",
            self.files.ca,
            secrets.tokens[render.ADMIN],
            secrets.ca_pem,
        )
        pki.write_private(self.kubeconfig, admin.encode())
        (run_dir / "resolv.conf").write_text(f"nameserver {self.plan.node(0).address}\n")
        state.save(run_dir)

    def _import(self, nodes: tuple[int, ...], archives: list[str]) -> None:
        # One after the other: two at once take twice as long as both in turn, most of it in the kernel.
        binaries = build.ensure("e2e")
        for archive in archives:
            for index in nodes:
                self._node(index, binaries).import_image(archive)

    def _wait_for_nodes(self, nodes: tuple[int, ...], gpus_per_node: int) -> None:
        api = self.api()
        for index in nodes:
            node = self.plan.node(index)
            log = node.data_dir / "logs" / "kubelet.log"
            host.wait_for(
                f"node {node.name} Ready",
                partial(api.node_is_ready, node.name),
                60,
                partial(host.tail, log),
            )
            if gpus_per_node:
                api.advertise(node.name, "nvidia.com/gpu", gpus_per_node)


def free_ports(num_ports: int) -> list[int]:
    """Different TCP ports of the loopback address that nobody listens on at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
