"""A node image for kind where no registry has one: kind's own files and the parts that are compiled here.

kind's module on the Go proxy holds the files of its base image; systemd and runc come from the host's
distribution, as the stand-in base image does. The control plane's pods run images of the same binaries, which
a node gives its containerd when it boots.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster import baseimage, build, buildah, host, images
from cluster.progress import step
from cluster.versions import HERE, Tool, cache_dir, content_key, load_tools, tools_of

RECIPE = HERE / "kindnode"
NODE = "localhost/stoker-kind-node"
REPOSITORY = "localhost/stoker-kind"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
FOLDERS = {
    "usr/bin": ("kubelet", "kubectl", "kubeadm"),
    "usr/local/bin": ("containerd", "containerd-shim-runc-v2", "ctr", "crictl"),
    "opt/cni/bin": ("ptp", "loopback", "host-local", "portmap"),
}


@dataclass(frozen=True)
class NodeImage:
    """A node image and the names that kubeadm has to be told.

    Attributes:
        tag: for `kind create cluster --image`.
        kubernetes: the version of Kubernetes, with a leading v.
        etcd: tag of etcd's image.
        coredns: tag of CoreDNS' image.
    """

    tag: str
    kubernetes: str
    etcd: str
    coredns: str

    @property
    def control_plane(self) -> str:
        """The image that API server, controllers, scheduler and etcd are names of."""
        return f"{REPOSITORY}/control-plane:{self.kubernetes}"

    @property
    def dns(self) -> str:
        """The image of CoreDNS."""
        return f"{REPOSITORY}/coredns:{self.coredns}"

    def tags(self) -> str:
        """What stoker-images reads: existing and further name of an image, one pair a line."""
        names = [f"{REPOSITORY}/{name}:{self.kubernetes}" for name in COMPONENTS]
        names.append(f"{REPOSITORY}/etcd:{self.etcd}")
        return "".join(f"{self.control_plane} {name}\n" for name in names)


def plan(tools: Iterable[Tool], recipe: dict[str, bytes], base_key: str) -> NodeImage:
    """The image that these tools, these files and this base make; its tag changes with each of them."""
    by_name = {tool.name: tool for tool in tools}
    key = content_key(
        {
            **recipe,
            **{f"//{name}": tool.key.encode() for name, tool in by_name.items()},
            "//base": base_key.encode(),
        }
    )
    version = by_name["kubeadm"].version
    return NodeImage(
        tag=f"{NODE}:{version}-{key[:8]}",
        kubernetes=version,
        etcd=by_name["kube"].also["go.etcd.io/etcd/server/v3"].removeprefix("v"),
        coredns=by_name["kube"].also["github.com/coredns/coredns"],
    )


def planned() -> NodeImage | None:
    """The image for this machine, made or not; None where none can be made."""
    base = baseimage.planned()
    if base is None:
        return None
    tools = load_tools()
    names = {tool.name: tool for stage in ("e2e", "kind", "kind-node") for tool in tools_of(stage, tools)}
    files = {str(path.relative_to(RECIPE)): path.read_bytes() for path in RECIPE.rglob("*") if path.is_file()}
    layout = {"//layout": repr((COMPONENTS, sorted(FOLDERS.items()))).encode()}
    return plan(names.values(), {**files, **layout}, base.key)


def loaded() -> NodeImage | None:
    """The image for this machine if the Docker engine has it."""
    image = planned()
    return image if image and is_loaded(image) else None


def is_loaded(image: NodeImage) -> bool:
    """Whether the Docker engine has it."""
    return host.succeeds(["docker", "image", "inspect", image.tag], timeout_s=20)


def ensure() -> NodeImage:
    """Make the image unless it was made before, and give it to the Docker engine.

    Raises:
        ClusterError: a part cannot be compiled or installed; not root; no package mirror answers.
    """
    base, image = baseimage.ensure(), planned()
    assert image is not None, "a base, and no plan for what stands on it"
    if is_loaded(image):
        return image
    archive = cache_dir() / "images" / f"{image.tag.removeprefix('localhost/').replace(':', '-')}.tar"
    with host.locked(cache_dir() / "images" / ".node.lock"):
        if not archive.exists():
            with step("build a node image for kind (first time only)"):
                make(image, archive, base.tag)
        with step("give the node image to the Docker engine"):
            host.run(["docker", "load", "--input", str(archive)], timeout_s=600)
        archive.unlink()
        forget_older(image)
    return image


def forget_older(image: NodeImage) -> None:
    """Remove the images of earlier pins from the engine; one that a cluster still uses stays."""
    listed = host.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", NODE]).split()
    for tag in listed:
        if tag != image.tag:
            host.succeeds(["docker", "rmi", tag], timeout_s=60)


def make(image: NodeImage, archive: Path, base_tag: str) -> None:
    """Build the images of the pods, then the node that has them."""
    binaries = {**build.ensure("e2e").paths, **build.ensure("kind-node").paths}
    base = {"BASE_IMAGE": base_tag}
    with tempfile.TemporaryDirectory(prefix=".node-", dir=cache_dir()) as name:
        context, pods = Path(name) / "node", Path(name) / "pods"
        root, folder = context / "root", context / "root/kind/images"
        shutil.copytree(RECIPE / "root", root)
        folder.mkdir(parents=True)
        pods.mkdir()
        shutil.copy(images.pause_archive(build.ensure("e2e")), folder / "pause.tar")
        shutil.copy(RECIPE / "control-plane.Dockerfile", pods / "Dockerfile")
        place([binaries[name] for name in (*COMPONENTS, "etcd", "coredns")], pods / "bin")
        buildah.build(image.control_plane, pods, base, folder / "control-plane.tar")
        shutil.rmtree(pods / "bin")
        shutil.copy(RECIPE / "coredns.Dockerfile", pods / "Dockerfile")
        buildah.build(image.dns, pods, {"BASE_IMAGE": image.control_plane}, folder / "coredns.tar")
        (folder / "tags").write_text(image.tags())
        for goal, names in FOLDERS.items():
            place([binaries[name] for name in names], root / goal)
        (root / "kind/version").write_text(image.kubernetes)
        shutil.copytree(kind_files(), context / "kind", copy_function=shutil.copyfile)
        shutil.copy(RECIPE / "Dockerfile", context / "Dockerfile")
        readable(context)
        buildah.build(image.tag, context, base, archive)


def place(programs: Iterable[Path], folder: Path) -> None:
    """Copy programs into a folder; one that is a link to another file becomes a link there, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        real = program.resolve()
        if not (folder / real.name).exists():
            shutil.copy(real, folder)
        if real.name != program.name:
            (folder / program.name).symlink_to(real.name)
    readable(folder)


def readable(folder: Path) -> None:
    """Give folders and files the modes that they shall have in an image, whatever the umask is here."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            is_open = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if is_open else 0o644)


def kind_files() -> Path:
    """The files of kind's base image, in the module cache."""
    module = load_tools()["kind"].module
    command = ["go", "-C", str(module), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind"]
    host.run(["go", "-C", str(module), "mod", "download", "sigs.k8s.io/kind"], timeout_s=600)
    return Path(host.run(command).strip()) / "images" / "base" / "files"
