"""Which revision new pods get: the wanted one, or, while a rollout is held, the one that serves."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.desired.avoidance import admit
from stoker_operator.observed import Manifest
from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.pods import avoided_by, is_terminating

# What the API server or the scheduler wrote into a pod's spec and a new pod must not inherit.
_ASSIGNED = frozenset({"nodeName", "priority", "preemptionPolicy", "serviceAccount", "ephemeralContainers"})


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision and the template of its pods (see `desired.pod.pod_template`)."""

    revision: str
    template: dict[str, Any]


def target_revision(wanted: Wanted, all_groups: list[Group]) -> Revision | None:
    """Return the revision that new pods get, None when nothing tells how to make one.

    While a rollout is held that is the one that serves, whose template is read back from one of its pods,
    since the spec that made it is gone. With no pod left there is nothing to hold.
    """
    newest = Revision(wanted.revision, wanted.pod) if wanted.pod else None
    revision = _serving_revision(all_groups) if wanted.is_held else None
    if revision is None or (newest is not None and revision == newest.revision):
        return newest
    # One that terminates will do when there is no other.
    pods = sorted((pod for group in all_groups for pod in group.members), key=is_terminating)
    pod = next(pod for pod in pods if pod["metadata"]["labels"].get(labels.REVISION) == revision)
    return Revision(revision, _template(pod))


def _serving_revision(all_groups: list[Group]) -> str | None:
    """Return the revision that most groups have answered with; of equals, the one that came first.

    What counts is an engine that answered since it started, ready or not at this moment and on a lost node or
    not, so that a slow probe or a broken network changes nothing. Where none has, all groups count.
    """
    by_revision: dict[str, list[Group]] = defaultdict(list)
    for group in all_groups:
        if group.revision:
            by_revision[group.revision].append(group)

    def evidence(revision: str) -> tuple[int, int, int, float, str]:
        found = by_revision[revision]
        answering = [
            group for group in found if group.has_answered and (group.is_live or group.phase is Phase.LOST)
        ]
        num_live = sum(group.is_live for group in found)
        age = -min(group.created_at for group in found).timestamp()
        return len(answering), num_live, len(found), age, revision

    return max(by_revision, key=evidence, default=None)


def _template(pod: Manifest) -> dict[str, Any]:
    metadata = pod["metadata"]
    notes = {labels.DRAINING_SINCE, labels.RESTARTS, labels.FAILED_ON, labels.AVOIDS}
    avoided = avoided_by(pod)
    annotations = {
        key: value
        for key, value in metadata.get("annotations", {}).items()
        if key not in notes and "kubernetes.io/" not in key
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": metadata["namespace"],
            "labels": dict(metadata["labels"]),
            "annotations": annotations,
            "ownerReferences": list(metadata["ownerReferences"]),
        },
        "spec": {key: value for key, value in admit(pod["spec"], avoided).items() if key not in _ASSIGNED},
    }
