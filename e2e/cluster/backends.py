"""Chooses what runs a cluster on this machine."""

from __future__ import annotations

import shutil

from cluster import kind, native, prerequisites
from cluster.api import Cluster, ClusterError

DEFAULT_NAME = "dev"


def needed_stages() -> list[str]:
    """The stages that have to be built on this machine for all tests that can run on it.

    With kind a cluster takes no compiler but for what is not on PATH. Then the integration tests' control
    plane and what tries the alerts are built where there is a Go.
    """
    # Last, since it shares what the others compile.
    alerts = [] if prerequisites.no_build("alerts") else ["alerts"]
    if prerequisites.kind_lacks() is not None:
        return ["e2e", *alerts]
    absent = [stage for name, stage in prerequisites.CLIENTS.items() if shutil.which(name) is None]
    integration = [] if prerequisites.no_build("integration") else ["integration"]
    return [*sorted({*absent, *integration}), *alerts]


def standing(name: str) -> list[Cluster]:
    """The clusters of a name that have left anything on this machine, whichever back end made them."""
    by_kind, by_us = kind.KindCluster(name), native.NativeCluster(name)
    found: list[Cluster] = [by_kind] if by_kind.folder.exists() else []
    has_ours = by_us.plan.run_dir.exists() or by_us.plan.data_dir.exists()
    return [*found, by_us] if has_ours else found


def open_cluster(name: str = DEFAULT_NAME, backend: str | None = None) -> Cluster:
    """A handle on a cluster, whether it is up or not.

    Args:
        backend: "kind", "native", or "auto": kind where a Docker engine answers, else native. By default
            what STOKER_CLUSTER_BACKEND says, or "auto".

    Raises:
        ClusterError: this machine can run neither; the text says what each of them lacks.
    """
    backend = backend or prerequisites.asked_for()
    if backend not in prerequisites.BACKENDS:
        raise prerequisites.unknown(backend)
    kind_lacks = prerequisites.kind_lacks() if backend != "native" else "not asked for"
    if kind_lacks is None:
        return kind.KindCluster(name)
    native_lacks = prerequisites.native_lacks() if backend != "kind" else "not asked for"
    if native_lacks is None:
        return native.NativeCluster(name)
    raise ClusterError(
        "no cluster can run on this machine.\n"
        f"  kind (Docker): {kind_lacks}.\n"
        f"  native (no Docker): {native_lacks}."
    )
