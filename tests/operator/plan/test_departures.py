"""What is written on nodes: which of it says that the node is about to go, and which does not."""

from __future__ import annotations

from typing import Any

import pytest

from stoker_operator.plan.departures import SIGNS, Place, Sign, departure


def node(**spec: Any) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True"}
    return {"metadata": {"name": "node-a"}, "spec": spec, "status": {"conditions": [ready]}}


def tainted(key: str, value: str = "", effect: str = "NoSchedule", **spec: Any) -> dict[str, Any]:
    return node(taints=[{"key": key, "value": value, "effect": effect}], **spec)


def with_sign(sign: Sign, value: str, **spec: Any) -> dict[str, Any]:
    """A node on which a sign stands."""
    if sign.place is Place.TAINT:
        return tainted(sign.key, value, **spec)
    found = node(**spec)
    if sign.place is Place.CONDITION:
        found["status"]["conditions"].append({"type": sign.key, "status": "True", "message": value})
    else:
        found["metadata"][f"{sign.place.value}s"] = {sign.key: value}
    return found


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.key)
def test_each_sign_is_read(sign: Sign) -> None:
    for value in sign.values or ("", "1764400000"):
        assert departure(with_sign(sign, value, unschedulable=True)) == f"{sign.place.value} {sign.key}"
        assert bool(departure(with_sign(sign, value))) is not sign.is_of_cordoned
    if sign.values:
        assert departure(with_sign(sign, "something-else", unschedulable=True)) == ""


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.key)
def test_each_sign_has_an_author_and_a_source(sign: Sign) -> None:
    assert sign.who
    assert sign.source.startswith("https://") or sign.source == "docs/operations.md"


@pytest.mark.parametrize(
    "staying",
    [
        pytest.param(node(), id="nothing"),
        pytest.param(node(unschedulable=True), id="cordoned"),
        pytest.param(tainted("node.kubernetes.io/unschedulable"), id="a-cordon's-taint"),
        pytest.param(
            tainted("DeletionCandidateOfClusterAutoscaler", "1764400000", "PreferNoSchedule"),
            id="a-candidate",
        ),
        pytest.param(tainted("UpdateInProgress", effect="PreferNoSchedule"), id="openshift-updates"),
        pytest.param(tainted("node.kubernetes.io/not-ready", effect="NoExecute"), id="not-ready"),
        pytest.param(tainted("node.kubernetes.io/disk-pressure"), id="disk-pressure"),
        pytest.param(tainted("karpenter.sh/unregistered", effect="NoExecute"), id="a-new-node"),
        pytest.param(tainted("kubernetes.azure.com/scalesetpriority", "spot"), id="a-spot-node"),
        pytest.param(tainted("nvidia.com/gpu", "present"), id="a-gpu-node"),
    ],
)
def test_what_else_is_written_on_nodes_says_nothing(staying: dict[str, Any]) -> None:
    assert departure(staying) == ""


def test_a_condition_that_does_not_hold_says_nothing() -> None:
    found = node()
    found["status"]["conditions"].append({"type": "PreemptScheduled", "status": "False"})
    assert departure(found) == ""


def test_a_node_that_is_being_deleted_goes() -> None:
    found = node()
    found["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    assert departure(found) == "its deletion"


def test_a_node_of_which_little_is_known_stays() -> None:
    assert departure({"metadata": {"name": "node-a"}}) == ""
