"""What an engine profile is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoker_operator.api import ModelDeployment


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
class EngineProfile:
    """One kind of engine.

    Args:
        name: which.
        port: container port of its HTTP server.
        serve_args: container arguments, from the ModelDeployment and the path of its model in the pod.
        fetch_args: arguments of the init container that downloads a model to a folder.
        ready_path: answers 200 while requests may come.
        live_path: answers 200 while the engine works; a pod that stops answering is restarted.
        in_flight_path: tells how many requests are not fully answered.
        read_in_flight: reads that answer's body. Raises ValueError when it is not understood.
        drain: how it is told to drain; None where it is only asked until nothing is in flight.
        read_termination: reads a container's termination message; None when it says nothing known.
        running_metric: gauge of the requests in the engine.
        waiting_metric: gauge of the requests waiting for it.
    """

    name: str
    port: int
    serve_args: Callable[[ModelDeployment, str], list[str]]
    fetch_args: Callable[[ModelDeployment, str], list[str]]
    ready_path: str
    live_path: str
    in_flight_path: str
    read_in_flight: Callable[[bytes], int]
    drain: Drain | None
    read_termination: Callable[[str], Cause | None]
    running_metric: str
    waiting_metric: str
