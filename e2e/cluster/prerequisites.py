"""What this machine lacks for each back end, before anything is downloaded or started.

Only the standard library is imported, here and in what this module imports: the check before the installation
of the project's dependencies uses it, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from cluster import build, cgroups, failures, host, packages
from cluster.api import ClusterError
from cluster.versions import load_tools, tools_of

GO = f"Go {build.MIN_GO[0]}.{build.MIN_GO[1]} or newer"
# What a kind cluster takes beside Docker, and the stage that builds it where it is not on PATH.
CLIENTS = {"kind": "kind", "kubectl": "integration", "helm": "charts"}

DOCKER_TIMEOUT_S = 20.0

BACKENDS = ("auto", "kind", "native")
VARIABLE = "STOKER_CLUSTER_BACKEND"


def asked_for() -> str:
    """The back end that STOKER_CLUSTER_BACKEND names; "auto" when nothing does.

    Raises:
        ClusterError: it names none that there is.
    """
    backend = os.environ.get(VARIABLE) or "auto"
    if backend not in BACKENDS:
        raise unknown(backend)
    return backend


def unknown(backend: str) -> ClusterError:
    """The error about a back end that does not exist."""
    return ClusterError(
        f"{VARIABLE}: backend {backend!r} is none of {', '.join(BACKENDS)}.",
        next_step=f"unset {VARIABLE}, or set it to one of these, then `{{again}}`.",
    )


def ruled_out() -> dict[str, str]:
    """The back ends that STOKER_CLUSTER_BACKEND keeps from being used, each with that as the reason."""
    try:
        chosen = asked_for()
    except ClusterError as error:
        return {backend: f"{error} Unset it, or set it to one of these" for backend in BACKENDS[1:]}
    others = BACKENDS[1:] if chosen != "auto" else ()
    return {backend: f"{VARIABLE} is {chosen}" for backend in others if backend != chosen}


def no_build(stage: str) -> str | None:
    """Why what a stage needs is neither in the cache nor can be built; None when one of them is true."""
    if build.is_built(tools_of(stage, load_tools())):
        return None
    found = build.go_version()
    if found is None:
        return f"there is no {GO} on PATH"
    if found < build.MIN_GO:
        return f"the Go on PATH is {found[0]}.{found[1]}; it takes {GO}"
    return None


def docker_error() -> str:
    """What `docker info` says of its failure."""
    command = ["docker", "info"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DOCKER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        return failures.text_of(error)
    return answer.stderr


def docker_reason(said: str) -> str:
    """The reason in what `docker info` printed, and how a user gets the right to use Docker."""
    lines = [line for line in said.strip().splitlines() if "pretty printing" not in line]
    reason = lines[-1].removeprefix("ERROR: ") if lines else "no reason given"
    may_not = failures.kind_of(reason) == "docker-permission"
    return reason + "; as root `usermod -aG docker USER`, then log in again" * may_not


def no_client() -> str | None:
    """Which program beside Docker a kind cluster lacks, with nothing to build it with; None when none."""
    for program, stage in CLIENTS.items():
        problem = no_build(stage)
        if shutil.which(program) is None and problem:
            hint = " (https://kind.sigs.k8s.io)" if program == "kind" else ""
            return f"there is no {program} on PATH{hint}, and nothing to build it with: {problem}"
    return None


def kind_lacks() -> str | None:
    """What keeps this machine from running kind; None when nothing does."""
    if shutil.which("docker") is None:
        return "there is no docker on PATH"
    if not host.succeeds(["docker", "info"], timeout_s=DOCKER_TIMEOUT_S):
        return f"no Docker engine answers ({docker_reason(docker_error())})"
    return no_client()


def native_lacks() -> str | None:
    """What keeps this machine from running a native cluster; None when nothing does."""
    if os.uname().sysname != "Linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root (network namespaces, mounts, cgroups)"
    if not cgroups.tracking_root().is_dir():
        return "it needs cgroup version 2, or version 1 with a `pids` hierarchy, at /sys/fs/cgroup"
    problem = no_build("e2e")
    if problem:
        return f"Kubernetes has to be compiled first, and {problem}"
    if packages.missing(packages.CLUSTER_PROGRAMS) and shutil.which("apt-get") is None:
        return f"these programs are missing: {', '.join(packages.missing(packages.CLUSTER_PROGRAMS))}"
    return None
