"""What Ready stands for: how many replicas of a revision answered together and have to go on doing so. Pure.

A promise is made once all that are wanted answer. It is of the replicas less `spec.rollout.maxUnavailable`,
but of one at least. A scale-up changes no promise until all of the new number answer, so it costs no Ready;
a scale-down shrinks it at once; another revision, and a start from none, begin without one. It stands in the
status, as nothing else remembers what was.
"""

from __future__ import annotations

from stoker_operator.desired import Wanted
from stoker_operator.observed import Manifest


def promised(stored: Manifest, wanted: Wanted, num_answering: int) -> int:
    """Return how many replicas are promised to answer, 0 before all have.

    Args:
        stored: the status as it was written last.
        wanted: what should exist.
        num_answering: replicas of the wanted revision that answer.
    """
    scale = wanted.scale
    if not scale.num_wanted:
        return 0
    most = max(1, scale.num_wanted - scale.max_unavailable)
    if num_answering >= scale.num_wanted:
        return most
    is_same = bool(wanted.revision) and stored.get("revision") == wanted.revision
    return min(stored.get("promisedReplicas") or 0, most) if is_same else 0


def is_kept(num_promised: int, num_wanted: int, num_answering: int) -> bool:
    """Tell whether enough replicas answer for Ready."""
    return num_answering >= num_wanted or 0 < num_promised <= num_answering
