"""What is wanted is made anew whenever the object is another one, and only then."""

from typing import Any

import pytest
from operator_world import CONFIG

from stoker_operator.api import InvalidSpec
from stoker_operator.api.labels import RESTARTED_AT
from stoker_operator.reconcile.wanted import MAX_REMEMBERED, WantedLately

KEY = ("default", "smol")


def stored(
    generation: int = 1, uid: str = "u", status: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    metadata = {"name": "smol", "namespace": "default", "uid": uid, "generation": generation}
    return {
        "metadata": {**metadata, "resourceVersion": "1", "labels": {}},
        "spec": {"model": {"source": "oci://registry.example/smol:1"}, **spec},
        "status": status or {},
    }


def test_an_object_is_read_once_whatever_its_status_tells() -> None:
    wanted = WantedLately(CONFIG)
    assert wanted(KEY, stored()) is wanted(KEY, stored(status={"replicas": 1}))


def test_whatever_a_pass_reads_of_an_object_makes_it_another_one() -> None:
    wanted = WantedLately(CONFIG)
    assert wanted(KEY, stored()).model.spec.replicas == 1
    assert wanted(KEY, stored(replicas=3)).model.spec.replicas == 3
    assert wanted(KEY, stored(generation=2)).model.generation == 2
    assert wanted(KEY, stored(uid="v")).model.uid == "v"
    restarted = stored(status={"restartedAt": "2026-03-01T12:00:00Z"})
    assert wanted(KEY, restarted).revision != wanted(KEY, stored()).revision
    annotated = stored()
    annotated["metadata"]["annotations"] = {RESTARTED_AT: "2026-03-01T12:00:00Z"}
    assert wanted(KEY, annotated).revision == wanted(KEY, restarted).revision
    leaving = stored()
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    assert wanted(KEY, leaving).model.is_deleting


def test_what_is_gone_or_long_ago_is_forgotten() -> None:
    wanted = WantedLately(CONFIG)
    first = wanted(KEY, stored())
    wanted.forget(KEY)
    second = wanted(KEY, stored())
    assert second is not first
    for number in range(MAX_REMEMBERED):
        wanted(("default", f"other-{number}"), stored())
    assert wanted(KEY, stored()) is not second


def test_an_object_that_cannot_be_read_raises_each_time_and_leaves_nothing() -> None:
    wanted = WantedLately(CONFIG)
    first = wanted(KEY, stored())
    for _ in range(2):
        with pytest.raises(InvalidSpec):
            wanted(KEY, stored(replicas="many"))
    assert wanted(KEY, stored()) is not first
