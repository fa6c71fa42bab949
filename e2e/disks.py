"""The file systems that a first run writes to, and how much of it each takes. Needs no package."""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import needs
from cluster import build, dockerd, host, prerequisites
from cluster.versions import cache_dir, load_tools, tools_of

SOURCES, CACHE, GO, DOCKER = "sources", "cache", "go", "docker"
GIB = 1 << 30


@dataclass(frozen=True)
class Disk:
    """One file system.

    Attributes:
        free_gib: free space, in GiB.
        holds: what grows there: SOURCES (the environment beside them), CACHE, GO's caches, DOCKER's data.
    """

    free_gib: float
    holds: frozenset[str]


def needed_gib(total: int, environment: int, disk: Disk, *, compiles: bool, has_cluster: bool) -> int:
    """How much of what a command takes may grow on one disk.

    The cache's disk must have room for all of it: what else lies where is not known that well.

    Args:
        total: what the command takes on all disks, in GiB, as the other amounts.
        environment: what the environment takes.
        compiles: whether something is still to be compiled for it.
        has_cluster: whether it runs a cluster.
    """
    shares = {
        SOURCES: environment,
        CACHE: total,
        GO: needs.GO_GIB * compiles,
        DOCKER: max(total - environment, needs.AGAIN_GIB) * has_cluster,
    }
    return min(total, sum(shares[what] for what in disk.holds))


def existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return folder if folder.exists() else existing(folder.parent)


def go_folders() -> list[Path]:
    """Where Go keeps what it compiled and downloaded; none without a Go."""
    if shutil.which("go") is None:
        return []
    answer = subprocess.run(
        ["go", "env", "GOCACHE", "GOMODCACHE"], capture_output=True, text=True, check=False
    )
    return [Path(line) for line in answer.stdout.split("\n") if Path(line).is_absolute()]


def docker_folders() -> list[Path]:
    """Where the Docker engine that answers keeps images and nodes; none where that is on another machine."""
    if not dockerd.answers():
        return []  # one of our own keeps them in the cache
    root = Path(host.run(["docker", "info", "--format", "{{.DockerRootDir}}"]).strip())
    return [root] if root.is_absolute() and root.is_dir() else []


def group(folders: Mapping[str, Iterable[Path]]) -> dict[Path, Disk]:
    """The disks that these folders are on, each by the folder of it that is named last."""
    found: dict[int, tuple[Path, frozenset[str]]] = {}
    for what, paths in folders.items():
        for path in map(existing, paths):
            device = path.stat().st_dev
            held = found[device][1] if device in found else frozenset()
            found[device] = (path, held | {what})
    return {path: Disk(shutil.disk_usage(path).free / GIB, holds) for path, holds in found.values()}


def look(sources: Path) -> dict[Path, Disk]:
    """The disks of this machine that grow."""
    places = {GO: go_folders(), DOCKER: docker_folders(), SOURCES: [sources], CACHE: [cache_dir()]}
    return group(places)


def to_compile(lacks: Mapping[str, str | None]) -> frozenset[str]:
    """The clusters, as in `needs.Need`, for which something is still to be compiled here.

    Args:
        lacks: as in `preflight.Machine`.
    """
    clients = [stage for name, stage in prerequisites.CLIENTS.items() if shutil.which(name) is None]
    with_kind = [*clients, "integration"]
    stages = {
        needs.NATIVE: ["e2e"],
        needs.KIND: clients,
        needs.ANY: ["e2e"] if lacks[needs.KIND] else with_kind,
        needs.ENGINE: with_kind,
    }
    known = load_tools()
    return frozenset(
        cluster
        for cluster, wanted in stages.items()
        if not all(build.is_built(tools_of(stage, known)) for stage in wanted)
    )
