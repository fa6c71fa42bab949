"""Builds with buildah where no Docker engine runs: no daemon, no registry, layers cached.

Steps run in a chroot with the host's network. pip inside them finds what pip on the host is told by its PIP_*
variables, through a pip.conf that is mounted and never becomes part of an image; folders of wheels are
mounted at their own path, and the host's certificates over the image's, because the host may trust an
authority of its own.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cluster import host, packages
from cluster.api import ClusterError
from cluster.versions import cache_dir

# pip's variable -> pip.conf's key
PIP_SETTINGS = {
    "PIP_CERT": "cert",
    "PIP_INDEX_URL": "index-url",
    "PIP_EXTRA_INDEX_URL": "extra-index-url",
    "PIP_TRUSTED_HOST": "trusted-host",
    "PIP_DEFAULT_TIMEOUT": "timeout",
    "PIP_PROXY": "proxy",
}
MAX_LAYERS_BYTES = 20 << 30
CERTIFICATES = Path("/etc/ssl/certs")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def work_dir() -> Path:
    """Folder of buildah's own files."""
    return cache_dir() / "buildah"


def wheel_folders(environment: Mapping[str, str], wheels: Path | None) -> list[Path]:
    """Folders of wheels that pip is told about, as far as they exist.

    Args:
        environment: PIP_FIND_LINKS holds the folders or addresses that the host's pip knows.
        wheels: one more folder.
    """
    names = [name for name in environment.get("PIP_FIND_LINKS", "").split() if "://" not in name]
    folders = [path.resolve() for path in ([wheels] if wheels else []) + [Path(name) for name in names]]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def pip_conf(environment: Mapping[str, str], wheels: list[Path]) -> str:
    """Render what pip is told inside a build step."""
    parser = configparser.ConfigParser(interpolation=None)
    parser["global"] = {key: environment[name] for name, key in PIP_SETTINGS.items() if environment.get(name)}
    parser["global"]["disable-pip-version-check"] = "true"
    links = [name for name in environment.get("PIP_FIND_LINKS", "").split() if "://" in name]
    if wheels or links:
        # As addresses, because pip splits the value at blanks.
        parser["global"]["find-links"] = "\n".join(["", *links, *(path.as_uri() for path in wheels)])
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def storage_conf(folder: Path, driver: str) -> str:
    """Where and how layers are kept."""
    return f'[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/layers"\nrunroot = "{folder}/run"\n'


def environment() -> dict[str, str]:
    """The environment of every buildah command; writes the files that it names."""
    folder = work_dir()
    folder.mkdir(parents=True, exist_ok=True)
    kind = host.run(["stat", "--file-system", "--format=%T", str(folder)]).strip()
    (folder / "storage.conf").write_text(storage_conf(folder, "vfs" if kind == "overlayfs" else "overlay"))
    (folder / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    # buildah locks a folder of networks even for builds that use none of them.
    networks = f'[network]\nnetwork_config_dir = "{folder}/networks"\n'
    (folder / "containers.conf").write_text(networks)
    kept = {name: value for name in ("HOME", *PROXY_VARIABLES) if (value := os.environ.get(name))}
    return {
        "PATH": packages.SYSTEM_PATH,
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "TMPDIR": str(folder),
        **kept,
    }


def run(*args: str, timeout_s: float = 3600) -> str:
    """Run one buildah command.

    Raises:
        ClusterError: it failed; the end of its output is in the text.
    """
    command = ["buildah", *args]
    done = subprocess.run(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
        umask=host.UMASK,
    )
    if done.returncode:
        raise ClusterError(f"`{shlex.join(command)}` failed with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def build_command(tag: str, context: Path, build_args: Mapping[str, str], volumes: list[str]) -> list[str]:
    """The arguments of the build itself."""
    return [
        "build",
        "--isolation=chroot",
        "--network=host",
        "--layers",
        "--pull-never",
        "--format=oci",
        f"--signature-policy={work_dir()}/policy.json",
        *(f"--volume={volume}" for volume in volumes),
        *(f"--build-arg={name}={value}" for name, value in build_args.items()),
        f"--tag={tag}",
        f"--file={context}/Dockerfile",
        str(context),
    ]


def build(
    tag: str, context: Path, build_args: Mapping[str, str], archive: Path, wheels: Path | None = None
) -> None:
    """Build an image and write it to an archive.

    Args:
        tag: its name.
        context: folder with the Dockerfile and what it copies.
        build_args: values of the Dockerfile's ARGs.
        archive: file to write.
        wheels: folder of wheels that pip prefers.

    Raises:
        ClusterError: buildah is missing and cannot be installed, or the build failed.
    """
    packages.ensure({"buildah": packages.IMAGE_PROGRAMS["buildah"]})
    folders = wheel_folders(os.environ, wheels)
    configuration = work_dir() / "pip.conf"
    work_dir().mkdir(parents=True, exist_ok=True)
    configuration.write_text(pip_conf(os.environ, folders))
    volumes = [f"{configuration}:/etc/pip.conf:ro", *(f"{folder}:{folder}:ro" for folder in folders)]
    if CERTIFICATES.is_dir():
        volumes.append(f"{CERTIFICATES}:{CERTIFICATES}:ro")
    run(*build_command(tag, context, build_args, volumes))
    export(tag, archive)
    if host.num_bytes(work_dir() / "layers") > MAX_LAYERS_BYTES:
        # All or nothing: the layers that the next build could start from belong to no image that has a name.
        run("rmi", "--all", "--force")


def export(tag: str, archive: Path) -> None:
    """Write an image of the layer store to an archive, all or nothing.

    The format is that of `docker save`, because its layers are not compressed: an OCI archive of the same
    image took three times as long to write and twice as long to import.
    """
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    run("push", f"--signature-policy={work_dir()}/policy.json", tag, f"docker-archive:{partial}:{tag}")
    partial.rename(archive)


def has_image(tag: str) -> bool:
    """Whether the layer store holds an image."""
    return tag in run("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").split()
