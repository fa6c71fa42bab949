"""Names that stand in the cluster: the group and kind, labels, annotations, container names."""

from __future__ import annotations

from typing import Any

GROUP = "stoker.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelDeployment"
PLURAL = "modeldeployments"
FIELD_MANAGER = "stoker-operator"

DEPLOYMENT = f"{GROUP}/deployment"  # name of the owning ModelDeployment
REVISION = f"{GROUP}/revision"  # hash of what the ModelDeployment asked of its pods
POD_GROUP = f"{GROUP}/group"  # name of the group of pods that is one replica
GROUP_SIZE = f"{GROUP}/group-size"  # pods of that group
RANK = f"{GROUP}/rank"  # the pod's place in its group: 0 leads
ROLE = f"{GROUP}/role"
ENGINE_PROFILE = f"{GROUP}/engine-profile"  # what the operator takes the engine in the pod for
LEADER = "leader"
WORKER = "worker"
ROLES = (LEADER, WORKER)
SERVING = f"{GROUP}/serving"  # "true" while the Service may send requests to the pod

APPLIED_HASH = f"{GROUP}/applied-hash"  # hash of the manifest that was applied last
DRAINING_SINCE = f"{GROUP}/draining-since"  # RFC 3339, UTC
RESTARTED_AT = f"{GROUP}/restarted-at"  # on a ModelDeployment, RFC 3339: a newer one replaces its pods
RESTARTS = f"{GROUP}/restarts"  # failed predecessors in a row
FAILED_ON = f"{GROUP}/failed-on"  # nodes that they failed on: "node-a=2,node-b=1"
FAILURES = f"{GROUP}/failures"  # on the record of a revision: failed groups that nobody follows yet
SUCCESSOR_OF = f"{GROUP}/successor-of"  # name of the failed group whose place this pod's group takes
AVOIDS = f"{GROUP}/avoids"  # nodes that this pod must not go to: "node-a,node-b"
LET_GO_AT = f"{GROUP}/let-go-at"  # RFC 3339, UTC: when our gate was taken from it
TURNS = f"{GROUP}/turns"  # of predecessors in a row that found no nodes for the whole group

GROUP_GATE = f"{GROUP}/group"  # scheduling gate of pods whose group is not whole, or not yet its turn

ENGINE_CONTAINER = "engine"
FETCH_CONTAINER = "fetch"
HTTP_PORT = "http"


def leader_selector(name: str) -> dict[str, str]:
    """Labels of the pods that answer HTTP for a ModelDeployment, draining ones included."""
    return {DEPLOYMENT: name, ROLE: LEADER}


def member_selector(name: str) -> dict[str, Any]:
    """Selector of all pods of a ModelDeployment's groups, whether they answer HTTP or not."""
    roles = {"key": ROLE, "operator": "In", "values": list(ROLES)}
    return {"matchLabels": {DEPLOYMENT: name}, "matchExpressions": [roles]}


def serving_selector(name: str) -> dict[str, str]:
    """Labels of the pods that count as its replicas: its Service sends requests to them."""
    return {**leader_selector(name), SERVING: "true"}


def selector_text(name: str) -> str:
    """Return the same as a label selector string, for ``/scale``, where ``status.replicas`` counts them."""
    return ",".join(f"{key}={value}" for key, value in serving_selector(name).items())
