"""How groups come to be: under which name, of which pods, and when those may go to nodes.

The pods of a group of several are made behind a gate that keeps them from nodes, so a group that a pass left
unfinished can be made whole: none of its pods has run. Once it is, and its turn has come (see turns), all of
them are let go. From then on a pod that is missing is a failure of the group, because nobody can say what the
others have agreed on with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired.avoidance import avoid
from stoker_operator.desired.shape import GroupShape, member
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.members import group_name
from stoker_operator.plan.pasts import Past, counts_text
from stoker_operator.plan.revisions import Revisions, Target
from stoker_operator.plan.steps import Step, admit, complete, start
from stoker_operator.plan.successors import Start


def starts(
    name: str, observed: Observed, target: Target, begun: Iterable[Start], noted: Iterable[Past]
) -> Iterator[Step]:
    """Return the groups to start.

    Args:
        name: of the ModelDeployment.
        observed: whose pods have names that are taken.
        target: what the groups are made of.
        begun: one for each.
        noted: of groups that are gone; their names say which they were.
    """
    if target.shape is None:
        return
    free = _free_names(f"{name}-{target.revision}", observed, noted)
    for past, group in zip(begun, free, strict=False):
        pods = _pods(target.shape, range(target.shape.size), group, target.revision, past)
        yield start(group, pods, "Replaced" if past.num_restarts or past.num_turns else "Wanted")


def completions(all_groups: Sequence[Group], known: Revisions, now: datetime) -> Iterator[Step]:
    """Return what makes groups whole that may still be, and what lets those go that are.

    One of which a pod was let go already is let go whatever its turn: it may hold something.
    """
    for group in all_groups:
        if group.phase is not Phase.GATED:
            continue
        shape = known.shape(group.revision)
        if group.missing and shape is not None:
            past = Start(
                group.num_restarts,
                tuple(group.failed_on.items()),
                group.avoids,
                group.successor_of,
                group.num_turns,
            )
            yield complete(group, _pods(shape, group.missing, group.name, group.revision, past))
            continue
        may_go = group.turn.has_come or not group.is_held_back
        if may_go and not group.missing and any(found.is_held_back for found in group.staying):
            yield admit(group, now)


def _free_names(prefix: str, observed: Observed, noted: Iterable[Past]) -> Iterator[str]:
    """Return the names, lowest first, that no group has or had, and no pod begins with."""
    taken = {group_name(pod) for pod in observed.pods} | {pod["metadata"]["name"] for pod in observed.pods}
    taken |= {past.group for past in noted}
    taken |= {name.rpartition("-")[0] for name in taken}
    return (name for ordinal in itertools.count() if (name := f"{prefix}-{ordinal}") not in taken)


def _pods(
    shape: GroupShape, ranks: Iterable[int], group: str, revision: str, past: Start
) -> list[dict[str, Any]]:
    manifests = (member(shape, rank, group, revision, past.num_restarts) for rank in ranks)
    return [_placed(manifest, past) for manifest in manifests]


def _placed(manifest: Manifest, past: Start) -> dict[str, Any]:
    """Keep a pod off the nodes that it should avoid, and note in it why."""
    notes = {
        labels.FAILED_ON: counts_text(past.failed_on),
        labels.SUCCESSOR_OF: past.successor_of,
        labels.AVOIDS: ",".join(past.avoid),
        labels.TURNS: str(past.num_turns or ""),
    }
    annotations = {
        **manifest["metadata"]["annotations"],
        **{key: text for key, text in notes.items() if text},
    }
    metadata = {**manifest["metadata"], "annotations": annotations}
    return {**manifest, "metadata": metadata, "spec": avoid(manifest["spec"], past.avoid)}
