"""What an engine profile is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoker_operator.api import ModelDeployment
from stoker_operator.profiles.container import EngineContainer, MountedModel


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something does not serve: a CamelCase reason for conditions, and a sentence for a person."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Drain:
    """How an engine is told to drain: a POST with a key, answered like its page of requests in flight.

    Args:
        path: of the POST.
        key_variable: environment variable that gives the engine its key: the uid of its pod.
    """

    path: str
    key_variable: str


@dataclass(frozen=True, slots=True)
class LoadPage:
    """The page that tells an engine's requests in flight: those that are not fully answered.

    Args:
        port: container port that it is on.
        path: of the page.
        read: reads its body. Raises ValueError when it is not understood.
        drain: how the engine is told to drain, on the same port; None where it is only asked until nothing
            is in flight.
    """

    port: int
    path: str
    read: Callable[[bytes], int]
    drain: Drain | None = None


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One kind of engine.

    Args:
        name: which; it stands on each pod and each record of a revision.
        container: what its container is, from the ModelDeployment and its model in the pod.
        load: where its requests in flight are read.
        read_termination: reads a container's termination message; None when it says nothing known.
    """

    name: str
    container: Callable[[ModelDeployment, MountedModel], EngineContainer]
    load: LoadPage
    read_termination: Callable[[str], Cause | None]
