"""Clears away what runs that were killed left in the cache: half builds, half archives, half base images.

Whoever makes such a thing holds the lock of its kind, and the kernel frees that lock with the process. So
what is found under a lock that nobody holds belongs to nobody.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import buildah, host, packages
from cluster.progress import say
from cluster.versions import cache_dir


@dataclass(frozen=True)
class Kind:
    """Temporary files of one kind.

    Attributes:
        lock: the file that is locked while they are in use.
        paths: those that are there.
    """

    lock: Path
    paths: tuple[Path, ...]


def kinds(cache: Path) -> Iterator[Kind]:
    """Yield what there is of each kind."""
    images = cache / "images"
    links = (path for path in host.LINKS.glob("stoker-link-*") if points_into(path / "link", cache))
    yield Kind(images / ".base.lock", (*cache.glob("stoker-base-*"), *links))
    partial = (*images.glob("*.partial"), *images.glob(".context-*"), *buildah.work_dir().glob("buildah*"))
    yield Kind(images / ".build.lock", partial)
    for lock in (cache / "tools").glob(".*.lock"):
        name = lock.name.removesuffix(".lock")
        yield Kind(lock, tuple(path for path in lock.parent.glob(f"{name}-*") if path.is_dir()))


def points_into(link: Path, cache: Path) -> bool:
    """Whether a link is one of `host.without_blanks` that leads into this cache."""
    return link.is_symlink() and link.readlink().is_relative_to(cache)


def sweep() -> None:
    """Remove what nobody uses any more; what is in use stays."""
    for kind in kinds(cache_dir()):
        if not kind.lock.exists():
            continue
        with host.locked_now(kind.lock) as is_free:
            if not is_free:
                continue
            for path in kind.paths:
                discard(path)
            if kind.lock.name == ".build.lock":
                forget_containers()


def discard(path: Path) -> None:
    """Remove one of them, unless a process that survived its parent still works in it."""
    users = users_of(path)
    if users:
        say(f"  left alone: {path}, which is used by processes {', '.join(map(str, users))}")
        return
    say(f"  cleared away, from a run that was killed: {path}")
    remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything that is mounted in it.

    mmdebstrap mounts /proc in the root folder that it makes, and leaves it there when it is killed; what it
    started may write for a moment longer.

    Raises:
        ClusterError: it cannot be removed.
    """
    if path.is_file():
        path.unlink(missing_ok=True)
        return

    def is_gone() -> bool:
        for mount in sorted(mounts_below(path, Path("/proc/self/mountinfo").read_text()), reverse=True):
            host.run(["umount", "--lazy", mount])
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    host.wait_for(f"removal of {path}", is_gone, 20)


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """Where something is mounted in a folder, by the text of /proc/self/mountinfo."""
    escaped = (line.split()[4] for line in mountinfo.splitlines())
    points = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point) for point in escaped]
    return [point for point in points if Path(point).is_relative_to(folder.resolve())]


def users_of(folder: Path) -> list[int]:
    """Processes that have a folder as their root or current folder, or in their command line."""
    found = []
    inside = str(folder.resolve())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            places = [os.readlink(entry / name) for name in ("root", "cwd")]
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended, or is none of ours
        if any(place == inside or place.startswith(f"{inside}/") for place in (*places, *words)):
            found.append(int(entry.name))
    return sorted(found)


def forget_containers() -> None:
    """Let buildah forget the containers of builds that were killed; each keeps a layer of its own."""
    if (buildah.work_dir() / "layers").exists() and packages.find("buildah"):
        names = buildah.run("containers", "--quiet").split()
        if names:
            buildah.run("rm", *names)
