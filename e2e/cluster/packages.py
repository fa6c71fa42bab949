"""Programs that the native back end takes from the host's distribution, and how to get them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence

from cluster import aptlock
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
APT_TIMEOUT_S = 1800.0


# Threads of one process would wait for apt's locks and say that it is themselves who hold them.
_ONE_AT_A_TIME = threading.Lock()


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
    with _ONE_AT_A_TIME:
        _install(programs)


def _install(programs: dict[str, str]) -> None:
    absent = missing(programs)
    if not absent:
        return
    packages = sorted({package for program in absent for package in programs[program].split()})
    command = ["install", "--yes", "--no-install-recommends", *packages]
    if find("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(
            f"missing programs: {', '.join(absent)}.",
            next_step=f"as root `apt-get {' '.join(command)}` (or what your distribution calls "
            "these packages), then `{again}`.",
        )
    with step(f"install packages: {' '.join(packages)}"):
        # It succeeds without its mirrors, with what an earlier one found.
        updated = apt_get("update", "--quiet")
        try:
            apt_get(*command)
        except ClusterError as error:
            raise ClusterError(
                f"{error}\nBefore, `apt-get update` said:\n{updated[-2000:].strip()}"
            ) from error
    still = missing(programs)
    if still:
        raise ClusterError(
            f"installed {' '.join(packages)}, and still there is no {', '.join(still)} on PATH."
        )


def apt_get(*arguments: str, waiting: aptlock.Waiting = aptlock.PATIENT) -> str:
    """Run apt-get as root, after whoever holds one of its locks or dpkg's.

    Args:
        waiting: how long to wait and how often to say so.

    Returns:
        What it printed.

    Raises:
        ClusterError: it failed, or a lock was held for too long; the text names who holds it.
    """
    program = find("apt-get")
    if program is None:
        raise ClusterError("apt-get is not on PATH: packages are installed on Debian and Ubuntu only.")
    wait = aptlock.Wait(waiting)
    while True:
        status, output = _run([program, *arguments])
        if status == 0:
            return output
        lock = aptlock.refused(output)
        if lock is None:
            raise ClusterError(f"`apt-get {' '.join(arguments)}` failed:\n{output[-3000:].strip()}")
        wait.until_free(lock)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run apt-get so that it asks nothing, speaks English, and leaves the waiting to us, which says so."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_MODE": "l"}
    line = [command[0], "-o", "DPkg::Lock::Timeout=0", *command[1:]]
    done = subprocess.run(
        line,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=APT_TIMEOUT_S,
    )
    return done.returncode, done.stdout
