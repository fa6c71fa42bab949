"""Builds container images and puts them into archives, with or without a Docker engine and a registry.

An image is built from a list of files, and only those are in its build context. So a hash over the
Dockerfile, the files, the build arguments and the base decides whether the archive of an earlier build is
still right.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import baseimage, buildah, host, packages
from cluster.api import ClusterError
from cluster.build import Binaries
from cluster.progress import say, step
from cluster.render import PAUSE_IMAGE
from cluster.versions import cache_dir, content_key

# In place of a base's own key, where Docker downloads the base that a Dockerfile names.
PUBLIC = "public"


@dataclass(frozen=True)
class Image:
    """What an image is made of.

    Attributes:
        tag: its name in the cluster; starts with localhost/, so that nothing looks for it in a registry.
        dockerfile: the Dockerfile.
        context: folder that `files` are relative to.
        files: files and folders that the Dockerfile may copy; nothing else is in the build context.
        build_args: values of the Dockerfile's ARGs.
        base_arg: the ARG that names the base image. Where Docker cannot download the one that the Dockerfile
            names, it gets the stand-in base made from the host's own distribution; None for `FROM scratch`.
        wheels: folder of wheels that pip prefers in a build on that stand-in.
    """

    tag: str
    dockerfile: Path
    context: Path
    files: Sequence[str] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    base_arg: str | None = "BASE_IMAGE"
    wheels: Path | None = None

    def __post_init__(self) -> None:
        """Refuse tags that a kubelet would look for in a registry."""
        if not self.tag.startswith("localhost/") or ":" not in self.tag:
            raise ClusterError(f"image tag {self.tag!r}: use localhost/NAME:VERSION.")


def context_files(image: Image) -> dict[str, Path]:
    """Every file of the build context by its path in there.

    Raises:
        ClusterError: a listed file does not exist.
    """
    found: dict[str, Path] = {}
    for name in image.files:
        top = image.context / name
        if not top.exists():
            raise ClusterError(f"image {image.tag} wants {name}, which is not in {image.context}.")
        paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        for path in paths:
            # What was compiled here is compiled anew in the image, as .dockerignore has it.
            if "__pycache__" not in path.parts and path.suffix != ".so":
                found[str(path.relative_to(image.context))] = path
    return found


def image_key(image: Image, base_key: str) -> str:
    """Hash of everything that decides what the build yields."""
    parts = {f"file:{name}": path.read_bytes() for name, path in context_files(image).items()}
    modes = {name: path.stat().st_mode & 0o111 for name, path in context_files(image).items()}
    recipe = {
        "//tag": image.tag,
        "//args": repr(sorted(image.build_args.items())),
        "//base": f"{image.base_arg}={base_key}",
        "//modes": repr(sorted(modes.items())),
        "//wheels": repr(sorted(path.name for path in image.wheels.glob("*.whl")) if image.wheels else []),
    }
    fixed = {name: value.encode() for name, value in recipe.items()}
    return content_key({**parts, **fixed, "//dockerfile": image.dockerfile.read_bytes()})


def docker_answers() -> bool:
    """Whether a Docker engine can build."""
    return shutil.which("docker") is not None and host.succeeds(["docker", "info"], timeout_s=20)


def archive_path(image: Image, key: str) -> Path:
    """Where the archive of a build is kept."""
    name = image.tag.removeprefix("localhost/").replace("/", "-").replace(":", "-")
    return cache_dir() / "images" / f"{name}-{key}.tar"


def holds(loaded: Sequence[str], archive: Path) -> bool:
    """Whether nodes that loaded these archives, in this order, have the image of another one already.

    Only archives of `build` say so by their name, which holds a hash of the content; and a later archive of
    the same tag has taken the tag over.
    """

    def tag(path: Path) -> str:
        return path.name.rpartition("-")[0]

    if archive.parent != cache_dir() / "images":
        return False
    same = [path for path in map(Path, loaded) if path.parent == archive.parent and tag(path) == tag(archive)]
    return bool(same) and same[-1] == archive


def build(image: Image) -> Path:
    """Build an image unless the same content was built before.

    Returns:
        An archive as `docker save` writes it.

    Raises:
        ClusterError: a prerequisite is missing or the build failed, with the end of its output.
    """
    if archive := built(image):
        return archive
    # One build at a time: they share the store of layers, which a build may empty when it has grown.
    with host.locked(cache_dir() / "images" / ".build.lock"):
        archive = built(image) or _build(image)
        forget_older(archive, image)
    return archive


def built(image: Image) -> Path | None:
    """The archive of an earlier build of the same content, whichever base it stands on."""
    keys = [PUBLIC]
    if image.base_arg and (stand_in := baseimage.planned()):
        keys.append(stand_in.key)
    for archive in (archive_path(image, image_key(image, key)) for key in keys):
        if archive.exists():
            archive.touch()
            return archive
    return None


def _build(image: Image) -> Path:
    with_docker = docker_answers() and docker_has(image)
    base = baseimage.ensure() if image.base_arg and not with_docker else None
    archive = archive_path(image, image_key(image, base.key if base else PUBLIC))
    context = tempfile.TemporaryDirectory(prefix=".context-", dir=archive.parent)
    with step(f"build image {image.tag}"), context as folder:
        stage_context(image, Path(folder))
        build_args = dict(image.build_args)
        if base and image.base_arg:
            build_args[image.base_arg] = base.tag
        if with_docker:
            docker_build(image.tag, Path(folder), build_args, archive)
        else:
            buildah.build(image.tag, Path(folder), build_args, archive, image.wheels)
    return archive


def public_base(image: Image) -> str | None:
    """The base image that a Dockerfile names by default; None for `FROM scratch`."""
    found = re.search(rf"^ARG {image.base_arg}=(\S+)", image.dockerfile.read_text(), re.MULTILINE)
    return found[1] if found else None


def docker_has(image: Image) -> bool:
    """Whether the Docker engine has an image's base, or can download it."""
    name = public_base(image)
    return name is None or can_pull(name)


@functools.cache
def can_pull(name: str) -> bool:
    """Whether the Docker engine has an image, after an attempt to download it where it has not."""
    if host.succeeds(["docker", "image", "inspect", name], timeout_s=20):
        return True
    try:
        with step(f"download base image {name}"):
            host.run(["docker", "pull", "--quiet", name], timeout_s=900)
    except ClusterError as error:
        say(f"    no registry for Docker, so the base image is bootstrapped here: {error}")
        return False
    return True


def stage_context(image: Image, folder: Path) -> None:
    """Copy the Dockerfile and the context's files into an empty folder.

    A COPY keeps their modes, and in a pod another user reads them than the one who checked them out, perhaps
    with a umask of 077. So they all get the modes that git knows.
    """
    for name, path in context_files(image).items():
        goal = folder / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, goal)
    for parent in (path for path in folder.rglob("*") if path.is_dir()):
        parent.chmod(0o755)
    shutil.copy(image.dockerfile, folder / "Dockerfile")


def link_or_copy(source: Path, goal: Path) -> None:
    """Hard-link a large file where that is possible, else copy it (model weights are in contexts, too)."""
    found = source.stat()
    mode = 0o755 if found.st_mode & 0o111 else 0o644
    is_near = found.st_dev == goal.parent.stat().st_dev
    if found.st_size > 1 << 24 and is_near and found.st_mode & 0o777 == mode:
        os.link(source, goal)
    else:
        shutil.copy(source, goal)
        goal.chmod(mode)


def docker_build(tag: str, context: Path, build_args: Mapping[str, str], archive: Path) -> None:
    """Build with the Docker engine and save the image."""
    arguments = [f"--build-arg={name}={value}" for name, value in build_args.items()]
    host.run(["docker", "build", "--tag", tag, *arguments, str(context)], timeout_s=3600)
    partial = archive.with_suffix(".partial")
    host.run(["docker", "save", "--output", str(partial), tag], timeout_s=600)
    partial.rename(archive)


def forget_older(archive: Path, image: Image, keep: int = 2) -> None:
    """Delete all but the newest few archives of the same tag: each is hundreds of megabytes."""
    siblings = archive_path(image, "*")
    found = sorted(siblings.parent.glob(siblings.name), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[keep:]:
        path.unlink()


def pause_archive(binaries: Binaries) -> Path:
    """The archive of the image that every pod's first process comes from."""
    packages.ensure({"buildah": packages.IMAGE_PROGRAMS["buildah"]})
    program = Path(binaries["pause"])
    with tempfile.TemporaryDirectory(prefix="stoker-pause-") as folder:
        dockerfile = Path(folder) / "Dockerfile"
        dockerfile.write_text('FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n')
        image = Image(PAUSE_IMAGE, dockerfile, program.parent, files=["pause"], base_arg=None)
        return build(image)
