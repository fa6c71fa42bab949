"""What all pods of a ModelDeployment share, as a table: whoever needs one more kind adds a row.

Rows are in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import ModelDeployment
from stoker_operator.desired.network import budget, service
from stoker_operator.desired.scale import Scale

SERVICE = "Service"
BUDGET = "PodDisruptionBudget"


@dataclass(frozen=True, slots=True)
class Child:
    """One of them.

    Args:
        kind: as in manifests.
        name: of the object.
        manifest: what it should be; None when it should not exist.
    """

    kind: str
    name: str
    manifest: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Headcount:
    """What children depend on of the pods that are there.

    Args:
        size: pods of a group; of the largest, while there are several revisions.
        num_draining: pods of groups that do not serve and still exist.
    """

    size: int = 1
    num_draining: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A kind of child.

    Args:
        kind: as in manifests.
        make: its manifest, of the ModelDeployment, its scale and the pods that are there.
        field: of the spec that it is made of; while that cannot be read, the child stays as it is.
    """

    kind: str
    make: Callable[[ModelDeployment, Scale, Headcount], dict[str, Any] | None]
    field: str = ""


_ROWS = (
    _Row(SERVICE, lambda model, *_: service(model), "service"),
    _Row(BUDGET, lambda model, scale, found: budget(model, scale, found.size, found.num_draining)),
)


def children(model: ModelDeployment, scale: Scale, headcount: Headcount) -> tuple[Child, ...]:
    """Return what should be of each kind, without those that the spec does not tell about.

    Args:
        model: whose children.
        scale: how many replicas it should have.
        headcount: the pods that are there.
    """
    told = (row for row in _ROWS if row.field not in model.unread)
    return tuple(Child(row.kind, model.name, row.make(model, scale, headcount)) for row in told)
