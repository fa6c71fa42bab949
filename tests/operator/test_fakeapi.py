"""The fake API server must not be wrong where the component tests rely on it."""

import json
from typing import Any

import pytest
from fakeapi.client import delete, everything, get, put
from fakeapi.core import FakeApi
from fakeapi.fields import FieldConflict, apply, merge
from fakeapi.nodes import GC_AFTER_S, Nodes
from fakeapi.scheduler import Scheduler
from fakeapi.storage import Storage
from virtual_time import pass_time, run_virtual, virtual_now

from stoker_operator.cluster.client import APPLY_PATCH, JSON, MERGE_PATCH

Object = dict[str, Any]
SCALE = "/apis/stoker.dev/v1alpha1/namespaces/default/modeldeployments/m/scale"


def model(**spec: Any) -> Object:
    return {"metadata": {"name": "m", "namespace": "default"}, "spec": spec}


def call(
    api: FakeApi, method: str, path: str, body: Object | None = None, content: str = JSON, **params: str
) -> Object:
    data = None if body is None else json.dumps(body).encode()
    reply = run_virtual(api.request(method, path, params, data, content))
    answer: Object = json.loads(reply.body)
    return answer


def test_apply_merges_named_lists_and_removes_only_what_the_manager_dropped() -> None:
    live: Object = {"spec": {"env": [{"name": "theirs", "value": "1"}]}}
    first, owners = apply(live, {"spec": {"env": [{"name": "a", "value": "1"}], "x": 1}}, {}, "us", False)
    assert first == {"spec": {"env": [{"name": "theirs", "value": "1"}, {"name": "a", "value": "1"}], "x": 1}}
    second, _ = apply(first, {"spec": {"x": 2}}, owners, "us", False)
    assert second == {"spec": {"env": [{"name": "theirs", "value": "1"}], "x": 2}}


def test_apply_keeps_a_field_that_another_manager_applies_too() -> None:
    one, owners = apply({}, {"a": 1}, {}, "one", False)
    two, owners = apply(one, {"a": 1}, owners, "two", False)
    three, _ = apply(two, {}, owners, "one", False)
    assert three == {"a": 1}


def test_apply_conflicts_without_force_and_takes_over_with_it() -> None:
    live, owners = apply({}, {"a": 1}, {}, "one", False)
    with pytest.raises(FieldConflict, match="one"):
        apply(live, {"a": 2}, owners, "two", False)
    forced, owners = apply(live, {"a": 2}, owners, "two", True)
    assert (forced, owners) == ({"a": 2}, {("a",): {"two"}})


def test_merge_patch_removes_with_null() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None}, "d": [4]}) == {"a": {"c": 2}, "d": [4]}


def test_generation_counts_changes_of_the_spec_only() -> None:
    api = FakeApi()
    first = put(api, "modeldeployments", model(replicas=1))
    labelled = put(api, "modeldeployments", {"metadata": {**model()["metadata"], "labels": {"a": "b"}}})
    changed = put(api, "modeldeployments", model(replicas=2))
    again = put(api, "modeldeployments", model(replicas=2))
    assert [obj["metadata"]["generation"] for obj in (first, labelled, changed, again)] == [1, 1, 2, 2]
    assert changed["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]


def test_a_plain_write_cannot_touch_the_status() -> None:
    api = FakeApi()
    put(api, "modeldeployments", model(replicas=1))
    path = SCALE.removesuffix("/scale")
    call(api, "PATCH", path, {"spec": {"replicas": 3}, "status": {"replicas": 9}}, MERGE_PATCH)
    call(api, "PATCH", f"{path}/status", {"spec": {"replicas": 5}, "status": {"url": "x"}}, MERGE_PATCH)
    found = get(api, "modeldeployments", "m")
    assert found is not None
    assert found["spec"] == {"replicas": 3}
    assert found["status"] == {"observedGeneration": -1, "url": "x"}


def test_scale_reads_and_writes_replicas() -> None:
    api = FakeApi()
    put(api, "modeldeployments", {**model(replicas=1), "status": {"replicas": 1, "selector": "a=b"}})
    assert call(api, "GET", SCALE)["status"] == {"replicas": 1, "selector": "a=b"}
    assert call(api, "PUT", SCALE, {"spec": {"replicas": 4}})["spec"] == {"replicas": 4}
    assert (get(api, "modeldeployments", "m") or {})["spec"]["replicas"] == 4


def managers(api: FakeApi, *path: str) -> set[tuple[str, str, str]]:
    """Who owns a field, by managedFields: manager, operation and subresource."""
    found = set()
    for entry in (get(api, "modeldeployments", "m") or {})["metadata"]["managedFields"]:
        fields = entry["fieldsV1"]
        for step in path:
            fields = (fields or {}).get(f"f:{step}")
        if fields is not None:
            found.add((entry["manager"], entry["operation"], entry.get("subresource", "")))
    return found


def test_managed_fields_tell_who_set_the_replicas() -> None:
    api, path = FakeApi(), SCALE.removesuffix("/scale")
    put(api, "modeldeployments", model(replicas=1))
    assert managers(api, "spec", "replicas") == {("user", "Update", "")}
    call(api, "PUT", SCALE, {"spec": {"replicas": 4}}, fieldManager="hpa")
    assert managers(api, "spec", "replicas") == {("hpa", "Update", "scale")}
    before = get(api, "modeldeployments", "m") or {}
    call(api, "PATCH", path, model(replicas=4), APPLY_PATCH, fieldManager="flux", force="true")
    shared = get(api, "modeldeployments", "m") or {}
    assert managers(api, "spec", "replicas") == {("hpa", "Update", "scale"), ("flux", "Apply", "")}
    assert shared["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
    assert shared["metadata"]["generation"] == before["metadata"]["generation"]
    call(api, "PATCH", path, model(replicas=2), APPLY_PATCH, fieldManager="flux", force="true")
    assert managers(api, "spec", "replicas") == {("flux", "Apply", "")}
    call(api, "PUT", SCALE, {"spec": {"replicas": 3}}, fieldManager="hpa")
    assert managers(api, "spec", "replicas") == {("hpa", "Update", "scale")}


def test_the_spec_of_a_pod_cannot_change() -> None:
    api = FakeApi()
    put(api, "pods", {**model(containers=[{"name": "c"}])})
    path = "/api/v1/namespaces/default/pods/m"
    refused = call(api, "PATCH", path, {"spec": {"hostNetwork": True}}, MERGE_PATCH)
    assert (refused["code"], refused["reason"]) == (422, "Invalid")


def test_garbage_collection_follows_owners() -> None:
    api = FakeApi()
    owner = put(api, "modeldeployments", model())
    reference = {"uid": owner["metadata"]["uid"], "kind": "ModelDeployment", "name": "m"}
    child = {"metadata": {"name": "s", "namespace": "default", "ownerReferences": [reference]}, "spec": {}}
    put(api, "services", child)
    assert api.storage.collect_garbage() == 0
    delete(api, "modeldeployments", "m")
    assert api.storage.collect_garbage() == 1
    assert everything(api, "services") == []


def test_a_finalizer_holds_a_deletion_up() -> None:
    api = FakeApi()
    put(api, "modeldeployments", {"metadata": {**model()["metadata"], "finalizers": ["x"]}, "spec": {}})
    delete(api, "modeldeployments", "m")
    found = get(api, "modeldeployments", "m")
    assert found is not None
    assert "deletionTimestamp" in found["metadata"]
    put(api, "modeldeployments", {"metadata": {**model()["metadata"], "finalizers": None}})
    assert get(api, "modeldeployments", "m") is None


def bare_pod(name: str, **spec: Any) -> Object:
    container = {"name": "engine", "resources": {"requests": {"nvidia.com/gpu": "1"}}}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": [container], **spec}}


def place(api: FakeApi, name: str, **spec: Any) -> tuple[str | None, str]:
    """Create a pod and let the scheduler try it once: its node, and what the scheduler says."""
    put(api, "pods", bare_pod(name, **spec))
    Scheduler(api).place(get(api, "pods", name) or {})
    pod = get(api, "pods", name) or {}
    return pod["spec"].get("nodeName"), pod["status"]["conditions"][0].get("message", "")


def test_the_scheduler_knows_capacity_taints_and_affinity() -> None:
    api = FakeApi()
    nodes = Nodes(api)
    nodes.add("node-a", allocatable={"nvidia.com/gpu": "1"})
    assert place(api, "first") == ("node-a", "")
    assert place(api, "second") == (None, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    taint = {"key": "team", "value": "x", "effect": "NoSchedule"}
    nodes.add("node-b", allocatable={"nvidia.com/gpu": "1"}, taints=[taint])
    assert "1 node(s) had untolerated taint {team: x}" in place(api, "third")[1]
    names = [{"key": "metadata.name", "operator": "NotIn", "values": ["node-b"]}]
    terms = {"nodeSelectorTerms": [{"matchFields": names}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    tolerations = [{"operator": "Exists"}]
    assert "didn't match" in place(api, "fourth", affinity=affinity, tolerations=tolerations)[1]
    assert place(api, "fifth", tolerations=tolerations) == ("node-b", "")
    nodes.add("node-c", unschedulable=True)
    assert "node(s) were unschedulable" in place(api, "sixth")[1]


def test_pods_of_a_node_that_is_gone_are_collected_after_a_while() -> None:
    async def scenario() -> None:
        api = FakeApi(Storage(virtual_now))
        nodes = Nodes(api)
        nodes.add("node-a")
        place(api, "first")
        nodes.lose("node-a")
        assert place(api, "second")[0] is None
        assert place(api, "third", tolerations=[{"operator": "Exists"}])[0] == "node-a"
        nodes.remove("node-a")
        nodes.advance()
        assert len(everything(api, "pods")) == 3
        await pass_time(GC_AFTER_S)
        nodes.advance()
        assert [pod["metadata"]["name"] for pod in everything(api, "pods")] == ["second"]

    run_virtual(scenario())
