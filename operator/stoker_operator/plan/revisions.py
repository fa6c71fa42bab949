"""Which revision new pods get: the wanted one, or, while a rollout is paused, the one that serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.desired.metadata import is_owned_by
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.groups import Group, is_terminating

# What the API server or the scheduler wrote into a pod's spec and a new pod must not inherit.
_ASSIGNED = frozenset({"nodeName", "priority", "preemptionPolicy", "serviceAccount", "ephemeralContainers"})


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision and the template of its pods (see `desired.pod.pod_template`)."""

    revision: str
    template: dict[str, Any]


def target_revision(wanted: Wanted, observed: Observed, all_groups: list[Group]) -> Revision:
    """Return the revision that the rollout goes to.

    While paused that is the revision with the most groups that answer, else with the most live groups. Its
    template is read back from one of its pods, since the spec that made it is gone.
    """
    newest = Revision(wanted.revision, wanted.pod)
    live = [group for group in all_groups if group.is_live]
    if not (wanted.model.spec.rollout.paused and live):
        return newest
    answering = [group for group in live if group.is_available] or live
    ((revision, _),) = Counter(group.revision for group in answering).most_common(1)
    if revision == wanted.revision:
        return newest
    names = {group.name for group in live if group.revision == revision}
    pod = next(
        pod
        for pod in observed.pods
        if pod["metadata"]["name"] in names and is_owned_by(pod, wanted.model.uid) and not is_terminating(pod)
    )
    return Revision(revision, _template(pod))


def _template(pod: Manifest) -> dict[str, Any]:
    metadata = pod["metadata"]
    notes = {labels.DRAINING_SINCE, labels.RESTARTS}
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
        "spec": {key: value for key, value in pod["spec"].items() if key not in _ASSIGNED},
    }
