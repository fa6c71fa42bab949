"""The stand-in base image: the host's own Debian or Ubuntu, bootstrapped once from the host's mirrors.

The Dockerfiles name a public base image by default. Where no registry can be reached this one takes its
place.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import buildah, host, leftovers, packages
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


def wanted() -> tuple[BaseImage, str, str]:
    """The base image of this machine, there or not, its distribution and that one's code name.

    Raises:
        ClusterError: it is neither Debian nor Ubuntu.
    """
    distribution, codename = release(Path("/etc/os-release").read_text())
    return named(distribution, codename), distribution, codename


def named(distribution: str, codename: str) -> BaseImage:
    """The base image of a distribution."""
    recipe = f"{distribution} {codename} {INCLUDED} mmdebstrap"
    key = content_key({"recipe": recipe.encode()})
    return BaseImage(f"localhost/stoker-base:{codename}-{key[:8]}", key)


def planned() -> BaseImage | None:
    """The base image of this machine, made or not; None where none can be made."""
    try:
        return wanted()[0]
    except (ClusterError, OSError):
        return None


def ensure() -> BaseImage:
    """Make the base image if this machine has none yet (about a minute).

    Raises:
        ClusterError: not root, not Debian or Ubuntu, or no mirror answers.
    """
    base, distribution, codename = wanted()
    packages.ensure({name: packages.IMAGE_PROGRAMS[name] for name in ("buildah", "mmdebstrap")})
    folder = cache_dir() / "images"
    with host.locked(folder / ".base.lock"):
        if not buildah.has_image(base.tag):
            with step(f"bootstrap a {distribution} {codename} base image (first time only)"):
                bootstrap(base, distribution, codename)
    return base


def bootstrap_command(
    codename: str, archive: Path, known: Sequence[tuple[str, str, str]], apt_files: Iterable[Path]
) -> list[str]:
    """The command that packs a root folder into an archive.

    Args:
        codename: of the release.
        archive: the tar file to write.
        known: the package sources that it gets, see `sources`; where there are none, the distribution's own.
        apt_files: apt's configuration for a proxy, which the image keeps.
    """
    # Losing power in the middle costs nothing but another try, so dpkg need not wait for the disk.
    options = ["--dpkgopt=force-unsafe-io", *(f"--aptopt={path}" for path in apt_files)]
    lines = [f"deb {address} {suite} {component}" for address, suite, component in known]
    include = f"--include={','.join(INCLUDED)}"
    return ["mmdebstrap", "--variant=minbase", include, *options, codename, str(archive), *lines]


def bootstrap(base: BaseImage, distribution: str, codename: str) -> None:
    """Make the image from a fresh root folder."""
    packages.apt_get("update", "--quiet")
    known = sources(
        host.run(["apt-get", "indextargets", "--format", TARGET, "Created-By: Packages"]), distribution
    )
    apt_files = sorted(Path("/etc/apt/apt.conf.d").glob("*proxy*"))
    work = Path(tempfile.mkdtemp(prefix="stoker-base-", dir=cache_dir()))
    archive = work / "root.tar"
    try:
        with host.without_blanks(work) as path:
            # What it makes on the way is there, too, where a later run clears it away if this one is killed.
            command = bootstrap_command(codename, path / "root.tar", known, apt_files)
            host.run(["env", f"TMPDIR={path}", *command], timeout_s=1800)
        container = buildah.run("from", "--pull-never", "scratch").split()[-1]
        buildah.run("add", container, str(archive), "/")
        buildah.run("config", "--cmd", "/bin/sh", "--env", f"PATH={packages.SYSTEM_PATH}", container)
        buildah.run(
            "commit", "--rm", f"--signature-policy={buildah.work_dir()}/policy.json", container, base.tag
        )
    finally:
        leftovers.remove(work)
