"""Which drains nobody can watch: the operator cannot reach the pod, or does not understand it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from stoker_operator.observed import Observed
from stoker_operator.plan.groups import Group, Phase
from stoker_operator.profiles import Cause, profile_of_pod

# One call that fails is no news, as a busy pod may not answer in time: the next one has to fail, too.
SILENT_FOR = timedelta(seconds=3)


def unobserved(observed: Observed, all_groups: Iterable[Group]) -> Cause | None:
    """Return what keeps us from seeing when draining pods are empty; None when all answer.

    Args:
        observed: with the readings of draining pods.
        all_groups: its replicas.
    """
    silent = [group for group in all_groups if _is_silent(group, observed)]
    if not silent:
        return None
    first = silent[0]
    leader = first.members[0]
    port = profile_of_pod(leader.pod).load.port
    others = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
    return Cause(
        "DrainUnobserved",
        f"pod {leader.name}{others} cannot be asked for requests in flight on port {port} "
        f"({observed.readings[leader.uid].trouble}), so it is kept for all of its grace period of "
        f"{first.grace_s:g} s: let the operator reach it through NetworkPolicies and meshes",
    )


def _is_silent(group: Group, observed: Observed) -> bool:
    """Tell whether a group drains, may have requests and did not answer for a while."""
    if group.phase is not Phase.DRAINING or not group.has_answered:
        return False
    reading = observed.readings.get(group.members[0].uid)
    if reading is None or reading.silent_since is None:
        return False
    return reading.read_at - reading.silent_since >= SILENT_FOR
