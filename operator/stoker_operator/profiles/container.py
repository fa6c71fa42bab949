"""What an engine's container is, so that whoever composes pods knows no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels


@dataclass(frozen=True, slots=True)
class MountedModel:
    """A model as the engine's container finds it.

    Args:
        path: its folder or file; of one that was downloaded its source, as `cache_dir` holds it under that.
        cache_dir: folder that a download filled before the engine starts, to serve as ``HF_HOME``; None
            where nothing is downloaded.
    """

    path: str
    cache_dir: str | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder to write to, empty when the pod starts.

    Args:
        name: of its volume. It begins with ``stoker-``, which the schema refuses as a user's, or is one of
            `api.volumes.OWN_VOLUMES`.
        path: of the folder in the container. The schema keeps those of `api.volumes.OWN_PATHS` free.
        medium: ``Memory`` keeps it there; empty for the node's disk.
    """

    name: str
    path: str
    medium: str = ""


TMP = Scratch("tmp", "/tmp")  # noqa: S108  a mount point inside the pod


@dataclass(frozen=True, slots=True)
class Probe:
    """A page of the HTTP port that the kubelet asks for; 200 is yes. Times are in seconds.

    Args:
        path: of the page.
        period_s: between two questions.
        failure_threshold: so many failures in a row are a no.
        timeout_s: what takes longer is a failure.
    """

    path: str
    period_s: int
    failure_threshold: int
    timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContainer:
    """What an engine needs of its container, beside what the ModelDeployment and the operator give to any.

    Args:
        command: the program; empty runs the image's own.
        args: its arguments.
        env: variables as Kubernetes writes them; they win over the user's.
        ports: by name. The one named ``http`` is what the Service sends requests to and probes ask.
        startup: says yes once, when it may be asked the other two.
        readiness: says yes while requests may come.
        liveness: says yes while the engine works; one that says no is restarted.
        scratch: folders that it writes to, beside its model's.
        user_id: whom it runs as, where neither the ModelDeployment nor the platform says.
        group_id: its group, and that of the files in its volumes.
        has_writable_root: whether it writes into its image's own folders as well.

    Raises:
        ValueError: no port is named ``http``.
    """

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    ports: Mapping[str, int]
    startup: Probe
    readiness: Probe
    liveness: Probe
    scratch: tuple[Scratch, ...] = ()
    user_id: int
    group_id: int
    has_writable_root: bool = False

    def __post_init__(self) -> None:
        if labels.HTTP_PORT not in self.ports:
            raise ValueError(f"an engine needs a port named {labels.HTTP_PORT}, and has {sorted(self.ports)}")
