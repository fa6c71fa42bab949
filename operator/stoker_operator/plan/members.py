"""Which observed pods make up which group.

Labels are anybody's to change. A pod that the Service could not select while it serves, or whose role and
rank do not go together, is no member: somebody took it out of sight, to look at it in peace. It keeps its
name, and goes with its owner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from stoker_operator.api import labels
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.ownership import is_ours
from stoker_operator.plan.pods import gates_of, is_terminating, labels_of, noted_count

# Of a group; a label that says more is nobody's, and to count as far would take all memory.
MAX_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Member:
    """A pod in its group.

    Args:
        rank: its place; 0 leads.
        pod: as observed.
    """

    rank: int
    pod: Manifest

    @property
    def name(self) -> str:
        """Of the pod."""
        return str(self.pod["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Of the pod."""
        return str(self.pod["metadata"]["uid"])

    @property
    def is_staying(self) -> bool:
        """Whether nobody has deleted it."""
        return not is_terminating(self.pod)

    @property
    def is_held_back(self) -> bool:
        """Whether our gate keeps it from any node."""
        return labels.GROUP_GATE in gates_of(self.pod)


def members_by_group(observed: Observed) -> dict[str, tuple[Member, ...]]:
    """Return the members of each group by its name, in the order of their ranks.

    A member is a pod that we own, or will once it is adopted.
    """
    name = observed.model["metadata"]["name"]
    found: dict[str, list[Member]] = defaultdict(list)
    for pod in observed.pods:
        own = labels_of(pod)
        rank = rank_of(pod)
        if rank is not None and own.get(labels.DEPLOYMENT) == name and is_ours(pod, observed.model):
            found[group_name(pod)].append(Member(rank, pod))
    return {group: _in_order(group, members) for group, members in found.items()}


def group_name(pod: Manifest) -> str:
    """Return the name of the group that a pod says it is of."""
    return labels_of(pod).get(labels.POD_GROUP) or str(pod["metadata"]["name"])


def noted_size(pod: Manifest) -> int:
    """Return how many pods a pod says that its group has; 0 for what cannot be."""
    size = noted_count(labels_of(pod).get(labels.GROUP_SIZE, ""))
    return size if size <= MAX_SIZE else 0


def is_whole(members: Sequence[Member], size: int) -> bool:
    """Tell whether there is a pod of each rank, and none that somebody deletes."""
    return {member.rank for member in members} >= set(range(size)) and all(
        member.is_staying for member in members
    )


def rank_of(pod: Manifest) -> int | None:
    """Return a pod's place in its group; None when its role and rank do not go together."""
    own = labels_of(pod)
    rank = noted_count(own.get(labels.RANK, ""))
    role = labels.WORKER if rank else labels.LEADER
    return rank if own.get(labels.ROLE) == role else None


def _in_order(group: str, members: list[Member]) -> tuple[Member, ...]:
    # Where two claim a rank, the one that we named comes first.
    named = {group, *(f"{group}-{member.rank}" for member in members)}
    return tuple(sorted(members, key=lambda member: (member.rank, member.name not in named, member.name)))
