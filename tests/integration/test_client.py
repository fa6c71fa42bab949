"""What a real API server answers where the operator decides on it, and the fake has to say the same."""

from __future__ import annotations

import pytest

from cluster import ControlPlane
from scenarios.kube import Kube
from scenarios.manifests import modeldeployment
from stoker_operator import handlers
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import Conflict
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS, SERVICES
from stoker_operator.cluster.transport import HttpTransport

pytestmark = pytest.mark.integration

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "twin", "namespace": "default"},
    "spec": {"ports": [{"port": 80}]},
}


async def test_a_patch_of_another_object_of_that_name_is_a_conflict(
    plane: ControlPlane, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    model = kube.apply(modeldeployment("twin", "default"))
    status = {key: model[key] for key in ("apiVersion", "kind")} | {"status": {"replicas": 1}}
    stale = {"name": "twin", "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555"}
    transport = HttpTransport(handlers.login)
    client = KubeClient(transport)
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
        await transport.close()
        kube.delete("Service", "twin", "default")
        kube.delete("ModelDeployment", "twin", "default")
