from typing import Any

import pytest
from fakeapi.client import get, put
from fakeapi.core import FakeApi
from fakeapi.faults import Fault, FaultAt
from virtual_time import run_virtual

from stoker_operator.cluster.client import KubeClient, Reply
from stoker_operator.cluster.errors import (
    AlreadyExists,
    ApiError,
    ApiUnreachable,
    Conflict,
    Gone,
    NotFound,
    Throttled,
    from_status,
)
from stoker_operator.cluster.resources import EVENTS, MODEL_DEPLOYMENTS, NODES, PODS, SERVICES

Object = dict[str, Any]


def service(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def pod() -> Object:
    return {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "engine"}]}}


def make_client() -> tuple[FakeApi, KubeClient]:
    api = FakeApi()
    return api, KubeClient(api)


def test_urls() -> None:
    assert PODS.url(None) == "/api/v1/pods"
    assert PODS.url("ns", "p") == "/api/v1/namespaces/ns/pods/p"
    assert MODEL_DEPLOYMENTS.url("ns", "m", "status") == (
        "/apis/stoker.dev/v1alpha1/namespaces/ns/modeldeployments/m/status"
    )
    assert NODES.url("ns", "n") == "/api/v1/nodes/n"
    assert EVENTS.api_version == "events.k8s.io/v1"
    assert SERVICES.api_version == "v1"


def test_create_names_the_manager_and_returns_the_servers_copy() -> None:
    api, client = make_client()
    created = run_virtual(client.create(PODS, pod()))
    assert created["status"]["phase"] == "Pending"
    assert created["metadata"]["uid"]
    stored = api.storage.get("pods", ("default", "p"))
    assert stored is not None
    assert {m for managers in stored.owners.values() for m in managers} == {"stoker-operator"}


def test_create_of_a_taken_name_already_exists() -> None:
    _, client = make_client()

    async def twice() -> None:
        await client.create(PODS, pod())
        await client.create(PODS, pod())

    with pytest.raises(AlreadyExists, match="already exists"):
        run_virtual(twice())


def test_apply_creates_updates_and_removes_what_it_no_longer_sets() -> None:
    _api, client = make_client()

    async def scenario() -> tuple[Object, Object, Object]:
        first = await client.apply(SERVICES, service(externalName="x"))
        same = await client.apply(SERVICES, service(externalName="x"))
        third = await client.apply(SERVICES, service())
        return first, same, third

    first, same, third = run_virtual(scenario())
    assert first["spec"]["externalName"] == "x"
    assert first["metadata"]["resourceVersion"] == same["metadata"]["resourceVersion"]
    assert "externalName" not in third["spec"]
    assert third["spec"]["clusterIP"] == first["spec"]["clusterIP"]


def test_apply_leaves_the_fields_of_others_alone() -> None:
    api, client = make_client()

    async def scenario() -> None:
        await client.apply(SERVICES, service())
        put(
            api,
            "services",
            {"metadata": {"name": "s", "namespace": "default", "annotations": {"theirs": "1"}}},
        )
        await client.apply(SERVICES, service())

    run_virtual(scenario())
    found = get(api, "services", "s")
    assert found is not None
    assert found["metadata"]["annotations"] == {"theirs": "1"}


def test_apply_of_a_status_needs_the_version_that_was_seen() -> None:
    api, client = make_client()
    model = put(api, "modeldeployments", {"metadata": {"name": "m", "namespace": "default"}, "spec": {}})
    body = {
        "apiVersion": "stoker.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {
            "name": "m",
            "namespace": "default",
            "resourceVersion": model["metadata"]["resourceVersion"],
        },
        "status": {"replicas": 1},
    }
    written = run_virtual(client.apply(MODEL_DEPLOYMENTS, body, "status"))
    assert written["status"] == {"observedGeneration": -1, "replicas": 1}
    assert written["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        run_virtual(client.apply(MODEL_DEPLOYMENTS, body, "status"))
    missing = {**body, "metadata": {"name": "gone", "namespace": "default"}}
    with pytest.raises(NotFound):
        run_virtual(client.apply(MODEL_DEPLOYMENTS, missing, "status"))


def test_merge_patch_checks_the_uid() -> None:
    _api, client = make_client()
    uid = run_virtual(client.create(PODS, pod()))["metadata"]["uid"]
    patch = {"metadata": {"uid": uid, "labels": {"a": "b"}}}
    assert run_virtual(client.merge_patch(PODS, "default", "p", patch))["metadata"]["labels"] == {"a": "b"}
    with pytest.raises(Conflict):
        run_virtual(client.merge_patch(PODS, "default", "p", {"metadata": {"uid": "other"}}))
    with pytest.raises(NotFound):
        run_virtual(client.merge_patch(PODS, "default", "gone", {}))


def test_delete_takes_only_the_object_it_means() -> None:
    _api, client = make_client()
    uid = run_virtual(client.create(PODS, pod()))["metadata"]["uid"]
    with pytest.raises(Conflict):
        run_virtual(client.delete(PODS, "default", "p", "other"))
    gone = run_virtual(client.delete(PODS, "default", "p", uid))
    assert gone["metadata"]["uid"] == uid
    with pytest.raises(NotFound):
        run_virtual(client.delete(PODS, "default", "p", uid))


def test_delete_of_a_running_pod_lets_it_terminate() -> None:
    api, client = make_client()
    uid = run_virtual(client.create(PODS, pod()))["metadata"]["uid"]
    put(
        api,
        "pods",
        {"metadata": pod()["metadata"], "spec": {"nodeName": "n"}, "status": {"phase": "Running"}},
    )
    found = run_virtual(client.delete(PODS, "default", "p", uid))
    assert found["metadata"]["deletionTimestamp"]
    assert get(api, "pods", "p") is not None


def test_reads_live() -> None:
    _api, client = make_client()
    run_virtual(client.create(PODS, pod()))
    assert run_virtual(client.get(PODS, "default", "p"))["metadata"]["name"] == "p"
    with pytest.raises(NotFound):
        run_virtual(client.get(PODS, "default", "q"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.CONFLICT, Conflict),
        (Fault.GONE, Gone),
        (Fault.THROTTLED, Throttled),
        (Fault.SERVER_ERROR, ApiError),
        (Fault.RESET_BEFORE, ApiUnreachable),
        (Fault.TIMEOUT_AFTER, ApiUnreachable),
    ],
)
def test_every_failure_has_its_exception(fault: Fault, error: type[Exception]) -> None:
    api, client = make_client()
    api.injector = FaultAt(0, fault)
    with pytest.raises(error):
        run_virtual(client.create(PODS, pod()))
    assert (get(api, "pods", "p") is not None) == fault.name.endswith("AFTER")


def test_another_uid_in_a_patch_is_a_conflict_and_other_bad_fields_are_not() -> None:
    causes = [{"reason": "FieldValueInvalid", "message": "field is immutable", "field": "metadata.uid"}]
    assert isinstance(from_status(422, {"reason": "Invalid", "details": {"causes": causes}}), Conflict)
    causes[0]["field"] = "spec.ports"
    assert type(from_status(422, {"reason": "Invalid", "details": {"causes": causes}})) is ApiError


def test_retry_after_comes_from_the_header_or_the_details() -> None:
    assert from_status(429, {}, "7").retry_after_s == 7.0
    assert from_status(500, {"details": {"retryAfterSeconds": 3}}).retry_after_s == 3.0
    assert from_status(503, {}, "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s == 0.0


def test_an_answer_that_is_no_json_is_shown() -> None:
    class Proxy(FakeApi):
        async def request(self, *args: Any, **kwargs: Any) -> Reply:
            return Reply(502, b"<html>bad gateway</html>")

    with pytest.raises(ApiError, match="bad gateway"):
        run_virtual(KubeClient(Proxy()).get(PODS, "default", "p"))


def test_unknown_fields_are_refused_in_all_but_a_status() -> None:
    """In silence they would be dropped: a typing error in an affinity, a field of another version."""
    asked: list[tuple[str, str | None]] = []

    class Listening(FakeApi):
        async def request(self, method: str, path: str, params: Any, *rest: Any) -> Reply:
            asked.append((path.rsplit("/", 1)[1], params.get("fieldValidation")))
            return await super().request(method, path, params, *rest)

    async def scenario() -> None:
        api = Listening()
        put(api, "modeldeployments", {"metadata": {"name": "m", "namespace": "default"}, "spec": {}})
        client = KubeClient(api)
        await client.create(PODS, pod())
        await client.apply(SERVICES, service())
        status = {"metadata": {"name": "m", "namespace": "default"}, "status": {"replicas": 1}}
        await client.apply(MODEL_DEPLOYMENTS, status, "status")

    run_virtual(scenario())
    assert asked == [("pods", "Strict"), ("s", "Strict"), ("status", None)]
