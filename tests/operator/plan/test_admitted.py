"""What admission may do to a pod of any kind of model, and what it may not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from golden_cases import CASES, CONFIG, CONFIGS
from hypothesis import given
from hypothesis import strategies as st
from operator_builders import make_wanted, shape_of

from stoker_operator.desired.shape import member
from stoker_operator.plan.admitted import changed, has_model_volume, unusable

NAMES = st.text("abcdefgh", min_size=1, max_size=8).map("x-{}".format)
CASE = st.sampled_from(sorted(CASES))


def asked(case: str) -> dict[str, Any]:
    wanted = make_wanted(CONFIGS.get(case, CONFIG), **CASES[case])
    return member(shape_of(wanted), 0, f"smol-{wanted.revision}-0", wanted.revision)


@given(
    case=CASE,
    labels=st.dictionaries(NAMES, NAMES, max_size=3),
    names=st.lists(NAMES, max_size=3),
    data=st.data(),
)
def test_what_others_add_and_their_order_change_nothing(
    case: str, labels: dict[str, str], names: list[str], data: st.DataObject
) -> None:
    pod = asked(case)
    created = copy.deepcopy(pod)
    metadata, spec = created["metadata"], created["spec"]
    metadata["labels"] |= {**labels, "app.kubernetes.io/managed-by": "mesh"}
    metadata["annotations"] |= labels
    metadata["ownerReferences"] += [{"kind": "Batch", "name": name, "uid": name} for name in names]
    spec["volumes"] += [{"name": name, "emptyDir": {}} for name in names]
    spec["volumes"] = data.draw(st.permutations(spec["volumes"]))
    sidecars = [{"name": name, "image": "i"} for name in names]
    spec["containers"] = data.draw(st.permutations([*spec["containers"], *sidecars]))
    spec["nodeName"] = "node-a"
    assert unusable(pod, created) is None
    assert changed(pod, created) == ()


@given(case=CASE, data=st.data())
def test_each_label_of_ours_and_the_owner_are_missed(case: str, data: st.DataObject) -> None:
    pod = asked(case)
    ours = [key for key in pod["metadata"]["labels"] if key.startswith("stoker.dev/")]
    key = data.draw(st.sampled_from([*ours, "ownerReferences"]))
    value = data.draw(st.none() | NAMES)
    created = copy.deepcopy(pod)
    place = created["metadata"] if key == "ownerReferences" else created["metadata"]["labels"]
    place.pop(key)
    if value is not None and place is not created["metadata"]:
        place[key] = value
    cause = unusable(pod, created)
    assert cause is not None
    assert cause.reason == "ChangedByAdmission"
    assert key in cause.message


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("part", ["volumes", "volumeMounts"])
def test_a_pod_without_its_model_is_none_of_ours(case: str, part: str) -> None:
    pod = asked(case)
    (engine,) = pod["spec"]["containers"]
    lost = next(mount["name"] for mount in engine["volumeMounts"] if mount["name"] in ("model", "cache"))
    created = copy.deepcopy(pod)
    place = created["spec"] if part == "volumes" else created["spec"]["containers"][0]
    place[part] = [found for found in place[part] if found["name"] != lost]
    assert has_model_volume(pod)
    assert not has_model_volume(created)
    cause = unusable(pod, created)
    is_image = str(CASES[case].get("model", {}).get("source", "")).startswith("oci://")
    assert cause is not None
    assert cause.reason == ("ImageVolumesOff" if is_image else "ChangedByAdmission")
