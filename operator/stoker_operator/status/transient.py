"""Conditions that are there only while they hold: that they do not is nothing to tell. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from stoker_operator.api.managers import contest
from stoker_operator.desired import Wanted
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.groups import Group
from stoker_operator.profiles import Cause
from stoker_operator.status.drains import unobserved
from stoker_operator.status.recorded import outdated
from stoker_operator.status.view import Aspect

# Their types, which are their reasons, too.
TRANSIENT = frozenset({"DrainUnobserved", "DefaultsOutdated", "ReplicasContested"})


def transient(wanted: Wanted, observed: Observed, all_groups: Sequence[Group]) -> list[Aspect]:
    """Return those that hold."""
    causes = (unobserved(observed, all_groups), outdated(wanted, observed), contested(observed.model))
    return [Aspect(cause.reason, "True", cause) for cause in causes if cause is not None]


def contested(model: Manifest) -> Cause | None:
    """Return who sets the replicas besides whom; whoever wrote last is followed all the same."""
    found = contest(model)
    if found is None:
        return None
    text = (
        f"{found.scaler} sets spec.replicas through /scale, and the manifest that {found.applier} applies "
        "has it, too, so each apply takes back what was scaled: leave spec.replicas out of the manifest"
    )
    return Cause("ReplicasContested", text)
