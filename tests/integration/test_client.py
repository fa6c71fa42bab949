"""What a real API server answers where the operator decides on it, and the fake has to say the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cluster.integration import ControlPlane
from scenarios.kube import Kube
from scenarios.manifests import modeldeployment
from stoker_operator import handlers
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import Conflict
from stoker_operator.cluster.resources import EVENTS, MODEL_DEPLOYMENTS, SERVICES
from stoker_operator.cluster.transport import HttpTransport
from stoker_operator.cluster.warnings import newest_warning

pytestmark = pytest.mark.integration

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "twin", "namespace": "default"},
    "spec": {"ports": [{"port": 80}]},
}


@pytest.fixture
async def client(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeClient]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    transport = HttpTransport(handlers.login)
    try:
        yield KubeClient(transport)
    finally:
        await transport.close()


async def test_a_kubelets_warning_is_found_by_the_pods_uid(client: KubeClient, kube: Kube) -> None:
    uid = "11111111-2222-3333-4444-555555555555"
    pod = {"metadata": {"name": "stuck", "namespace": "default", "uid": uid}}
    for name, about in (("stuck.1", uid), ("stuck.2", "another")):
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "stuck", "namespace": "default", "uid": about},
            "type": "Warning",
            "reason": "FailedMount",
            "message": f"about {about}",
            "lastTimestamp": "2026-01-01T00:00:00Z",
        }
        kube.request("POST", "/api/v1/namespaces/default/events", event)
    selector = f"regarding.uid={uid},type=Warning"
    page = await client.list_page(EVENTS, "default", "", 10, field_selector=selector)
    assert [item["metadata"]["name"] for item in page.items] == ["stuck.1"]
    assert await newest_warning(client, pod) == f"about {uid}"


async def test_a_patch_of_another_object_of_that_name_is_a_conflict(client: KubeClient, kube: Kube) -> None:
    model = kube.apply(modeldeployment("twin", "default"))
    status = {key: model[key] for key in ("apiVersion", "kind")} | {"status": {"replicas": 1}}
    stale = {"name": "twin", "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555"}
    try:
        with pytest.raises(Conflict):
            await client.apply(SERVICES, {**SERVICE, "metadata": stale})
        await client.apply(SERVICES, SERVICE)
        with pytest.raises(Conflict):
            await client.apply(SERVICES, {**SERVICE, "metadata": stale})
        with pytest.raises(Conflict):
            await client.merge_patch(SERVICES, "default", "twin", {"metadata": {"uid": stale["uid"]}})
        with pytest.raises(Conflict):
            await client.delete(SERVICES, "default", "twin", stale["uid"])
        # A status is not kept from another object by the uid, but it is by the version.
        await client.apply(MODEL_DEPLOYMENTS, {**status, "metadata": stale}, "status")
        version = model["metadata"]["resourceVersion"]
        seen = {"name": "twin", "namespace": "default", "resourceVersion": version}
        with pytest.raises(Conflict):
            await client.apply(MODEL_DEPLOYMENTS, {**status, "metadata": seen}, "status")
        seen["resourceVersion"] = (await client.get(MODEL_DEPLOYMENTS, "default", "twin"))["metadata"][
            "resourceVersion"
        ]
        written = await client.apply(
            MODEL_DEPLOYMENTS, {**status, "status": {"replicas": 2}, "metadata": seen}, "status"
        )
        assert written["status"]["replicas"] == 2
    finally:
        kube.delete("Service", "twin", "default")
        kube.delete("ModelDeployment", "twin", "default")
