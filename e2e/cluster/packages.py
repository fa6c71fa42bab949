"""Programs that the native back end takes from the host's distribution, and how to get them there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from cluster.api import ClusterError
from cluster.progress import step

# program -> Debian (and Ubuntu) package
CLUSTER_PROGRAMS = {
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "setsid": "util-linux",
}
IMAGE_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(program: str) -> str | None:
    """Path of a program, looked up in the administrator's folders too."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def missing(programs: Iterable[str]) -> list[str]:
    """Those of the programs that are not installed."""
    return [program for program in programs if find(program) is None]


def ensure(programs: dict[str, str]) -> None:
    """Install what is missing with apt-get.

    Args:
        programs: program -> the packages, separated by blanks, that bring it.

    Raises:
        ClusterError: something is missing and cannot be installed from here; the text has the command.
    """
    absent = missing(programs)
    if not absent:
        return
    packages = sorted({package for program in absent for package in programs[program].split()})
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if find("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"missing programs: {', '.join(absent)}. As root: {' '.join(command)}")
    with step(f"install packages: {' '.join(packages)}"):
        for line in (["apt-get", "update", "--quiet"], command):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ClusterError(f"`{' '.join(line)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
    still = missing(programs)
    if still:
        raise ClusterError(
            f"installed {' '.join(packages)}, and still there is no {', '.join(still)} on PATH."
        )
