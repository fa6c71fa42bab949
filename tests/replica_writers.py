"""Who sets the replicas of a ModelDeployment in scenarios: an autoscaler, and those who apply manifests."""

import json
from typing import Any

from fakeapi.client import put
from managed_fields import LAST_APPLIED
from operator_world import NAME, World

from stoker_operator.cluster.client import APPLY_PATCH, JSON

PATH = f"/apis/stoker.dev/v1alpha1/namespaces/default/modeldeployments/{NAME}"
KUBECTL, FLUX, HPA = "kubectl-client-side-apply", "kustomize-controller", "kube-controller-manager"


async def scale(world: World, replicas: int) -> None:
    """What a HorizontalPodAutoscaler writes."""
    body = json.dumps({"spec": {"replicas": replicas}}).encode()
    await world.api.request("PUT", f"{PATH}/scale", {"fieldManager": HPA}, body, JSON)


async def server_apply(world: World, **spec: Any) -> None:
    """What Flux applies."""
    body = json.dumps({"metadata": {"name": NAME}, "spec": spec}).encode()
    await world.api.request("PATCH", PATH, {"fieldManager": FLUX, "force": "true"}, body, APPLY_PATCH)


def kubectl_apply(world: World, **spec: Any) -> None:
    """What `kubectl apply` sends, and notes beside it."""
    notes = {LAST_APPLIED: json.dumps({"spec": spec})}
    metadata = {"name": NAME, "namespace": "default", "annotations": notes}
    put(world.api, "modeldeployments", {"metadata": metadata, "spec": spec}, KUBECTL)
