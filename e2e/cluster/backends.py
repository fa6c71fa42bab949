"""Chooses what runs a cluster on this machine."""

from __future__ import annotations

from cluster import kind, native
from cluster.api import Cluster, ClusterError

DEFAULT_NAME = "dev"
BACKENDS = ("auto", "kind", "native")


def open_cluster(name: str = DEFAULT_NAME, backend: str = "auto") -> Cluster:
    """A handle on a cluster, whether it is up or not.

    Args:
        backend: "kind", "native", or "auto": kind where a Docker engine answers and kind is on PATH,
            else native.

    Raises:
        ClusterError: this machine can run neither; the text says what each of them lacks.
    """
    if backend not in BACKENDS:
        raise ClusterError(f"backend {backend!r} is none of {', '.join(BACKENDS)}.")
    kind_lacks = kind.why_not() if backend != "native" else "not asked for"
    if kind_lacks is None:
        return kind.KindCluster(name)
    native_lacks = native.why_not() if backend != "kind" else "not asked for"
    if native_lacks is None:
        return native.NativeCluster(name)
    raise ClusterError(
        "no cluster can run on this machine.\n"
        f"  kind (Docker): {kind_lacks}.\n"
        f"  native (no Docker): {native_lacks}."
    )
