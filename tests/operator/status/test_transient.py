"""Conditions that come and go: what they say, and that they are taken back."""

from __future__ import annotations

from typing import Any

from managed_fields import APPLY, REPLICAS, SCALE, entry
from operator_builders import CONFIG, NOW, make_model, make_observed, make_pod, make_wanted

from stoker_operator.status import Change, change, events, status

Object = dict[str, Any]
OTHERS: Object = {"type": "Other", "status": "True", "observedGeneration": 1, "reason": "X", "message": ""}


def told(*entries: Object, stored: Object | None = None) -> Object:
    """Return the status of a ModelDeployment that answers, with these managedFields."""
    wanted, model = make_wanted(), make_model(status=stored)
    model["metadata"]["managedFields"] = list(entries)
    return status(wanted, make_observed(wanted, make_pod(wanted), model=model), CONFIG, NOW)


def condition(found: Object, kind: str = "ReplicasContested") -> Object:
    return next((entry for entry in found["conditions"] if entry["type"] == kind), {})


CONTESTED = told(
    entry("kustomize-controller", *APPLY, REPLICAS), entry("kube-controller-manager", *SCALE, REPLICAS)
)


def test_two_who_set_the_replicas_are_named_with_the_way_out() -> None:
    found = condition(CONTESTED)
    assert (found["status"], found["reason"]) == ("True", "ReplicasContested")
    for part in ("kube-controller-manager sets", "kustomize-controller applies", "leave spec.replicas out"):
        assert part in found["message"]
    assert condition(CONTESTED, "Ready")["status"] == "True", "whoever wrote last is followed"


def test_it_is_a_warning_once() -> None:
    before = told()
    assert condition(before) == {}
    (event,) = events(before, CONTESTED, ())
    assert (event.type, event.reason) == ("Warning", "ReplicasContested")
    assert event.note == condition(CONTESTED)["message"]
    assert events(CONTESTED, CONTESTED, ()) == []


def test_one_that_holds_no_more_is_a_change_to_write() -> None:
    after = told(stored=CONTESTED)
    assert condition(after) == {}
    assert change(CONTESTED, after) is Change.PROGRESS
    with_others = {**after, "conditions": [*after["conditions"], OTHERS]}
    assert change(with_others, after) is Change.NONE, "what others wrote is theirs to take back"
