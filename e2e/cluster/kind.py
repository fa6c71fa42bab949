"""The kind back end, for machines with a Docker engine: thin, because kind does the work."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from cluster import build, host, images, nodeimage, render
from cluster.api import ClusterError
from cluster.kindconfig import (
    NODE_IMAGES,
    NodeAddress,
    addresses,
    gpu_patch,
    kind_config,
    pod_network,
    too_old,
)
from cluster.nodeimage import NodeImage
from cluster.plan import NAME
from cluster.prerequisites import CLIENTS
from cluster.progress import say, step
from cluster.versions import cache_dir

CONTAINERD = "/etc/containerd/config.toml"
IMAGE_VARIABLE = "STOKER_KIND_NODE_IMAGE"


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
        self.notes = self.folder / "archives.json"

    def node_names(self) -> list[str]:
        names = self.kind("get", "nodes", "--name", self.name).split()
        running = host.run(["docker", "ps", "--format", "{{.Names}}"]).split()
        return sorted((name for name in names if name in running), key=lambda name: ("worker" in name, name))

    def prepare(self) -> None:
        for name in CLIENTS:
            self.tool(name)

    def up(self, *, num_nodes: int = 2, gpus_per_node: int = 4) -> None:
        if self.name in self.kind("get", "clusters").split():
            if len(self.node_names()) == num_nodes and self._answers():
                self._finish(gpus_per_node)
                say(f"cluster {self.name} already runs.")
                return
            self.down()
        for folder in (self.folder, images_dir()):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "audit-policy.yaml").write_text(render.audit_policy())
        # The API server would make a file that only root can read.
        self.audit_log.touch()
        with step(f"kind cluster {self.name}, nodes: {num_nodes}"):
            self._create(num_nodes)
            self._finish(gpus_per_node)

    def _create(self, num_nodes: int) -> None:
        """Let kind create the cluster from the image that was named, or from the one that kind downloads.

        Without a registry it is one of ours; an engine that has that was without one before.
        """
        named = os.environ.get(IMAGE_VARIABLE)
        own = nodeimage.loaded()
        if named:
            if named.startswith(nodeimage.NODE) and (own is None or own.tag != named):
                raise ClusterError(
                    f"{IMAGE_VARIABLE}={named} is of other pins than {own and own.tag}; unset it."
                )
            self._create_from(num_nodes, named, own if own and own.tag == named else None)
        elif own:
            say(f"    nodes are made from {own.tag}, built here because there was no registry")
            self._create_from(num_nodes, own.tag, own)
        else:
            try:
                self._create_from(num_nodes, None, None)
            except ClusterError as error:
                if "failed to pull image" not in str(error):
                    raise
                say("    kind's node image cannot be downloaded; one is put together here instead")
                own = nodeimage.ensure()
                self._create_from(num_nodes, own.tag, own)

    def _create_from(self, num_nodes: int, image: str | None, own: NodeImage | None) -> None:
        is_v1 = host.run(["docker", "info", "--format", "{{.CgroupVersion}}"]).strip() == "1"
        config = kind_config(self.name, num_nodes, self.folder, images_dir(), is_cgroup_v1=is_v1, own=own)
        command = ["create", "cluster", "--name", self.name, "--config", "-"]
        command += ["--kubeconfig", str(self.kubeconfig)] + (["--image", image] if image else [])
        self.kind(*command, text=config, timeout_s=1200)

    def _finish(self, gpus_per_node: int) -> None:
        """Connect the nodes where that is our task, wait for them, and give them GPUs; does no harm twice."""
        if self._lacks_network():
            self._connect()
        host.run(
            self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=180s"), timeout_s=200
        )
        problem = too_old(self._nodes())
        if problem:
            self.down()
            raise ClusterError(f"{problem}: use kind 0.30 or newer, whose node image has them.")
        for node in self.node_names():
            patch = ["--subresource=status", "--type=json", f"--patch={gpu_patch(gpus_per_node)}"]
            host.run(self.kubectl("patch", "node", node, *patch))

    def _answers(self) -> bool:
        """Whether the API server serves; nodes that were just started again get some time."""

        def is_ready() -> bool:
            return host.succeeds(self.kubectl("get", "--raw", "/readyz"))

        if not self.kubeconfig.exists():
            return False  # `kind create` was interrupted
        try:
            host.wait_for("an answer of the API server", is_ready, 60)
        except ClusterError:
            return False
        return True

    def _lacks_network(self) -> bool:
        image = host.run(["docker", "inspect", "--format", "{{.Config.Image}}", self._control_plane()])
        return image.strip().startswith(nodeimage.NODE)

    def _connect(self) -> None:
        found: list[NodeAddress] | None = None

        def have_ranges() -> bool:
            nonlocal found
            found = addresses(self._nodes())
            return found is not None

        host.wait_for("address ranges for the pods of all nodes", have_ranges, 60)
        running = self.node_names()
        for node in found or []:
            if node.name in running:
                script = pod_network(node, found or [])
                host.run(["docker", "exec", "--interactive", node.name, "sh", "-s"], text=script)

    def _nodes(self) -> list[dict[str, Any]]:
        answer = host.run(self.kubectl("get", "nodes", "--output=json"))
        items: list[dict[str, Any]] = json.loads(answer)["items"]
        return items

    def down(self) -> None:
        self.kind("delete", "cluster", "--name", self.name, timeout_s=180)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def load_image(self, archive: Path) -> None:
        is_mounted = archive.parent.resolve() == images_dir().resolve()
        archive = images_dir() / archive.name if is_mounted else archive.resolve()
        loaded = json.loads(self.notes.read_text()) if self.notes.exists() else []
        if images.holds(loaded, archive):
            return
        for node in self.node_names():
            if is_mounted:
                self._import(node, archive)
            else:
                self.kind(
                    "load", "image-archive", str(archive), "--name", self.name, "--nodes", node, timeout_s=600
                )
            for tag in tags_of(archive):
                # As in the native back end: what took a tag over is found by its hash only after this.
                host.run(in_node(node, "images", "label", tag, "io.cri-containerd.image=imported"))
        kept = [path for path in loaded if path != str(archive)]
        self.notes.write_text(json.dumps([*kept, str(archive)]))

    def _import(self, node: str, archive: Path) -> None:
        """Let a node read an archive from the folder that is mounted into it.

        `kind load` sends every byte through a pipe to containerd's transfer service, which takes three times
        as long.
        """
        said = host.run(["docker", "exec", node, "grep", "--only-matching", "snapshotter = .*", CONTAINERD])
        snapshotter = said.split('"')[1]
        options = ["--local", f"--snapshotter={snapshotter}", f"{NODE_IMAGES}/{archive.name}"]
        host.run(in_node(node, "images", "import", *options), timeout_s=600)

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
        node = self._control_plane()
        if os.geteuid() == 0:
            pid = host.run(["docker", "inspect", "--format", "{{.State.Pid}}", node]).strip()
            return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command]
        return ["docker", "exec", "--interactive", node, *command]

    def _control_plane(self) -> str:
        return f"{self.name}-control-plane"

    def kind(self, *args: str, text: str | None = None, timeout_s: float = 120) -> str:
        """Run kind and return its output.

        Raises:
            ClusterError: it failed; its error output is in the text.
        """
        return host.run([self.tool("kind"), *args], text=text, timeout_s=timeout_s)

    def kubectl(self, *args: str) -> list[str]:
        return [self.tool("kubectl"), "--kubeconfig", str(self.kubeconfig), *args]

    def tool(self, name: str) -> str:
        return shutil.which(name) or build.ensure(CLIENTS[name])[name]


def images_dir() -> Path:
    """The folder of built images, which nodes see as NODE_IMAGES."""
    return cache_dir() / "images"


def in_node(node: str, *arguments: str) -> list[str]:
    """The command line of containerd's client in a node."""
    return ["docker", "exec", node, "ctr", "--namespace=k8s.io", *arguments]


def tags_of(archive: Path) -> list[str]:
    """The tags of the images in an archive as `docker save` writes it; none for an OCI archive."""
    with tarfile.open(archive) as tar:
        if "manifest.json" not in tar.getnames():
            return []
        manifest = tar.extractfile("manifest.json")
        entries = json.load(manifest) if manifest else []
    return [tag for entry in entries for tag in entry.get("RepoTags") or []]
