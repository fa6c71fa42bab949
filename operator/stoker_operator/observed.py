"""What the caches held about one ModelDeployment at one moment: all that plans see of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """What a plan needs to know of a node.

    Args:
        is_schedulable: False when somebody cordoned it, which is how a drain begins.
        is_ready: False when its kubelet no longer reports.
        is_there: False when its object is gone, and the machine with it as far as anybody knows.
        lost_since: since when we have seen it not ready, or not there; None when nobody noted it.
        is_leaving: its pods have to go: it is drained, or somebody is about to take it away.
    """

    is_schedulable: bool = True
    is_ready: bool = True
    is_there: bool = True
    lost_since: datetime | None = None
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a draining pod said the last time it was asked.

    Args:
        read_at: when it was asked.
        num_in_flight: its requests; None when it could not be asked.
        trouble: why it could not.
        silent_since: since when it cannot be asked.
    """

    read_at: datetime
    num_in_flight: int | None
    trouble: str = ""
    silent_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a group of several pods stands among those that compete with it; see `plan.turns`.

    Args:
        ahead: name of the group that goes before it, maybe another ModelDeployment's; "" for none.
        not_before: when it comes to stand in line, where that is in the future.
        is_over: it was let go and has no nodes for all its pods, so it has to make room.
        changes_at: when time alone may change this.
    """

    ahead: str = ""
    not_before: datetime | None = None
    is_over: bool = False
    changes_at: datetime | None = field(default=None, compare=False)

    @property
    def has_come(self) -> bool:
        """Whether the group may go to nodes."""
        return not self.ahead and self.not_before is None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write of this pass that the API server will refuse again until somebody changes something.

    Args:
        what: kind and name of the child, as in "pod smol-1a2b3c4d-0".
        message: the server's words: a quota, an admission policy, the schema.
        reason: for a condition, CamelCase.
    """

    what: str
    message: str
    reason: str = "Refused"

    @property
    def is_of_pod(self) -> bool:
        """Whether it keeps a pod from coming or going, and so leaves what others answer alone."""
        return self.what.startswith("pod ")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call of this pass that failed and is tried again with a back-off: an error of the server, no answer.

    Args:
        what: the action in words, as in "create pod smol-1a2b3c4d-0".
        message: the error.
    """

    what: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """One ModelDeployment and everything that carries its label.

    Args:
        model: the ModelDeployment as stored, with its status; of managedFields, what `contest` reads.
        pods: every pod in its namespace with the label ``stoker.dev/deployment`` of this name, whoever owns
            it, with metadata (managedFields may be missing), spec and status as the API server gave them.
        children: what all pods share, by kind and name, whoever owns it: what has the label of this name, and
            what holds a name that we need.
        revisions: every ControllerRevision in its namespace with the label of this name, whoever owns it.
        nodes: those of the pods, by name; one that is absent does not exist. None when nodes may not be read,
            and then all count as healthy.
        readings: requests in flight by pod uid; of draining pods only, and of those that were asked already.
        turns: of groups of several pods that wait for nodes, by name; one that is absent may go whenever it
            is whole.
        refusals: what the API server refuses; only the status looks at them.
        failure: the call that keeps failing; only the status looks at it.
        warnings: what the kubelet says about a pod that takes long to be created, by uid, "" when it says
            nothing; only the status looks at them.
    """

    model: Manifest
    pods: tuple[Manifest, ...] = ()
    children: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    revisions: tuple[Manifest, ...] = ()
    nodes: Mapping[str, Node] | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    turns: Mapping[str, Turn] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    failure: Failure | None = None
    warnings: Mapping[str, str] = field(default_factory=dict)

    def child(self, kind: str) -> Manifest | None:
        """Return the child of this kind that has the ModelDeployment's name, whoever owns it."""
        return self.children.get((kind, self.model["metadata"]["name"]))
