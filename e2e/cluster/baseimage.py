"""The stand-in base image: the host's own Debian or Ubuntu, bootstrapped once from the host's mirrors.

The Dockerfiles name a public base image by default. Where no registry can be reached this one takes its
place.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cluster import buildah, host, packages
from cluster.api import ClusterError
from cluster.progress import step
from cluster.versions import cache_dir, content_key

INCLUDED = ("ca-certificates",)
TARGET = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"


@dataclass(frozen=True)
class BaseImage:
    """A base image in buildah's store.

    Attributes:
        key: changes when the image would be made in another way.
    """

    tag: str
    key: str


def release(text: str) -> tuple[str, str]:
    """The distribution and its code name, from the text of /etc/os-release.

    Raises:
        ClusterError: it is neither Debian nor Ubuntu, or has no code name.
    """
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, flags=re.MULTILINE))
    name, codename = fields.get("ID", ""), fields.get("VERSION_CODENAME", "")
    if name not in ("debian", "ubuntu") or not codename:
        raise ClusterError(
            f"a base image can be bootstrapped on Debian and Ubuntu, and this is {name or 'unknown'} "
            f"{codename or 'without a code name'}. Install Docker and kind instead."
        )
    return name, codename


def sources(targets: str, distribution: str) -> list[tuple[str, str, str]]:
    """The host's own package sources of its distribution, as (address, suite, component).

    Args:
        targets: apt's index targets, one "ADDRESS SUITE COMPONENT ORIGIN" a line; origin is as the archive
            signs it.
    """
    found = []
    for line in targets.splitlines():
        address, suite, component, origin = (*line.split(), "", "", "", "")[:4]
        if origin.lower() == distribution and not address.startswith(("file:", "cdrom:")):
            found.append((address, suite, component))
    return list(dict.fromkeys(found))


def planned() -> BaseImage | None:
    """The base image of this machine, made or not; None where none can be made."""
    try:
        distribution, codename = release(Path("/etc/os-release").read_text())
    except (ClusterError, OSError):
        return None
    return named(distribution, codename)


def named(distribution: str, codename: str) -> BaseImage:
    """The base image of a distribution."""
    key = content_key({"release": f"{distribution} {codename}".encode(), "included": repr(INCLUDED).encode()})
    return BaseImage(f"localhost/stoker-base:{codename}-{key[:8]}", key)


def ensure() -> BaseImage:
    """Make the base image if this machine has none yet (about two minutes).

    Raises:
        ClusterError: not root, not Debian or Ubuntu, or no mirror answers.
    """
    distribution, codename = release(Path("/etc/os-release").read_text())
    base = named(distribution, codename)
    packages.ensure({name: packages.IMAGE_PROGRAMS[name] for name in ("buildah", "debootstrap")})
    folder = cache_dir() / "images"
    with host.locked(folder / ".base.lock"):
        if not buildah.has_image(base.tag):
            with step(f"bootstrap a {distribution} {codename} base image (first time only)"):
                bootstrap(base, distribution, codename)
    return base


def bootstrap(base: BaseImage, distribution: str, codename: str) -> None:
    """Make the image from a fresh root folder."""
    host.run(["apt-get", "update", "--quiet"], timeout_s=300)
    known = sources(
        host.run(["apt-get", "indextargets", "--format", TARGET, "Created-By: Packages"]), distribution
    )
    mirror = next(
        (address for address, suite, component in known if (suite, component) == (codename, "main")), None
    )
    work = Path(tempfile.mkdtemp(prefix="stoker-base-", dir=cache_dir()))
    root = work / "root"
    try:
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED)}", codename, str(root)]
        host.run([*command, mirror] if mirror else command, timeout_s=1800)
        if known:
            lines = [f"deb {address} {suite} {component}\n" for address, suite, component in known]
            (root / "etc/apt/sources.list").write_text("".join(lines))
        for path in Path("/etc/apt/apt.conf.d").glob("*proxy*"):
            shutil.copy(path, root / "etc/apt/apt.conf.d" / path.name)
        drop_downloads(root)
        container = buildah.run("from", "--pull-never", "scratch").split()[-1]
        buildah.run("add", container, str(root), "/")
        buildah.run("config", "--cmd", "/bin/sh", "--env", f"PATH={packages.SYSTEM_PATH}", container)
        buildah.run(
            "commit", "--rm", f"--signature-policy={buildah.work_dir()}/policy.json", container, base.tag
        )
    finally:
        shutil.rmtree(work)


def drop_downloads(root: Path) -> None:
    """Drop what debootstrap downloaded: package files and indexes would double the image."""
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for path in (root / folder).iterdir():
            if path.is_file():
                path.unlink()
