"""Who sets spec.replicas, as far as managedFields tells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from managed_fields import APPLY, LAST_APPLIED, REPLICAS, SCALE, UPDATE, entry
from operator_builders import make_model

from stoker_operator.api.managers import Contest, contest, replica_entries
from stoker_operator.informer.packed import pack, unpack
from stoker_operator.reconcile.trim import trim_model

Object = dict[str, Any]


def model(*entries: Object, applied: Any = None) -> Object:
    """Return a ModelDeployment with these managedFields; `applied` is what `kubectl apply` noted."""
    stored = make_model(replicas=3)
    stored["metadata"] |= {"managedFields": list(entries), "resourceVersion": "7"}
    if applied is not None:
        text = applied if isinstance(applied, str) else json.dumps(applied)
        stored["metadata"]["annotations"] = {LAST_APPLIED: text}
    return stored


HPA = entry("kube-controller-manager", *SCALE, REPLICAS)
NOTED: Object = {"f:metadata": {"f:annotations": {f"f:{LAST_APPLIED}": {}}}}
KUBECTL = entry("kubectl-client-side-apply", *UPDATE, NOTED)
FLUX = entry("kustomize-controller", *APPLY, REPLICAS)
WITH, WITHOUT = {"spec": {"replicas": 2}}, {"spec": {"suspend": False}}


@pytest.mark.parametrize(
    ("stored", "applier"),
    [
        pytest.param(model(FLUX, HPA), "kustomize-controller", id="an-applied-field-is-shared"),
        pytest.param(model(HPA, KUBECTL, applied=WITH), "kubectl-client-side-apply", id="kubectl-apply"),
        pytest.param(
            model(entry("argocd-controller", *UPDATE, NOTED), HPA, applied=WITH),
            "argocd-controller",
            id="whoever-applies-as-kubectl-does",
        ),
        pytest.param(
            model(FLUX, entry("keda", "Apply", "scale", REPLICAS)), "kustomize-controller", id="applied-scale"
        ),
    ],
)
def test_two_who_set_it_are_named(stored: Object, applier: str) -> None:
    found = contest(stored)
    assert found is not None
    assert found.applier == applier
    assert found.scaler in ("kube-controller-manager", "keda")


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(make_model(), id="nothing-is-known"),
        pytest.param(model(HPA), id="the-scaler-alone"),
        pytest.param(model(FLUX), id="the-manifest-alone"),
        pytest.param(model(KUBECTL, applied=WITH), id="nobody-scales"),
        pytest.param(model(KUBECTL, HPA, applied=WITHOUT), id="left-out"),
        pytest.param(model(KUBECTL, HPA, applied={"spec": {"replicas": None}}), id="null"),
        pytest.param(model(HPA, applied=WITH), id="a-note-of-nobody"),
        pytest.param(model(entry("flux", *APPLY, NOTED), HPA, applied=WITH), id="applied-by-server-since"),
        # The API server fills in the default, which belongs to whoever creates the object.
        pytest.param(model(entry("kubectl-create", *UPDATE, REPLICAS), HPA), id="a-default"),
        pytest.param(
            model(entry("stoker-operator", "Apply", "status", {"f:status": {"f:replicas": {}}}), HPA),
            id="our-own-status",
        ),
        *(
            pytest.param(model(KUBECTL, HPA, applied=text), id=f"note-{text}")
            for text in ("", "{", "[]", "3", '{"spec": 4}')
        ),
    ],
)
def test_one_alone_is_no_contest(stored: Object) -> None:
    assert contest(stored) is None


NAMES = st.sampled_from(["a", "b"])
FIELDS = st.sampled_from([REPLICAS, NOTED, {"f:spec": {"f:suspend": {}}}, {**REPLICAS, **NOTED}, {}])
ENTRIES = st.lists(
    st.builds(
        entry, NAMES, st.sampled_from(["Apply", "Update"]), st.sampled_from(["", "scale", "status"]), FIELDS
    )
)


@given(entries=ENTRIES, applied=st.sampled_from([None, WITH, WITHOUT]))
def test_what_a_cache_keeps_tells_the_same(entries: list[Object], applied: Any) -> None:
    stored = model(*entries, applied=applied)
    kept = unpack(pack(trim_model(stored), ()))
    assert contest(kept) == contest(stored)
    assert trim_model(kept) == kept
    assert len(kept["metadata"].get("managedFields", ())) <= len(entries)


def test_without_a_scaler_a_cache_keeps_nothing_of_it() -> None:
    assert replica_entries([FLUX, KUBECTL]) == []
    assert "managedFields" not in trim_model(model(FLUX, KUBECTL, applied=WITH))["metadata"]


def test_what_is_kept_is_no_more_than_it_takes() -> None:
    busy = entry("flux", *APPLY, {"f:spec": {"f:replicas": {}, "f:model": {"f:source": {}}}})
    kept = replica_entries([{**busy, "time": "2026-03-01T12:00:00Z"}, HPA])
    assert kept[0] == {"manager": "flux", "operation": "Apply", "fieldsV1": REPLICAS}
    assert contest(model(*kept)) == Contest(applier="flux", scaler="kube-controller-manager")


def test_a_note_that_is_nested_without_end_is_no_note() -> None:
    assert contest(model(HPA, KUBECTL, applied="[" * 100_000)) is None
