"""What pods name and must be there before them: without it they are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scenarios.kube import Kube, Object
from scenarios.waiting import eventually


def wait_for_account(kube: Kube, namespace: str) -> None:
    """Wait until a new namespace has got its account."""
    where = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    eventually(f"{namespace} has an account", lambda: kube.request("GET", where)["items"], 30)


def make_accounts(kube: Kube, manifests: Iterable[Object]) -> None:
    """Make the service accounts that pods among these manifests run under."""
    for manifest in manifests:
        name = manifest["spec"].get("serviceAccountName") if manifest["kind"] == "Pod" else None
        if name is not None:
            metadata = {"name": name, "namespace": manifest["metadata"]["namespace"]}
            apply(kube, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})


def make_runtime_classes(kube: Kube, specs: Iterable[Object]) -> None:
    """Make the runtime classes that specs of pods name."""
    for name in {spec["runtimeClassName"] for spec in specs if "runtimeClassName" in spec}:
        named = {"metadata": {"name": name}, "handler": name}
        apply(kube, {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", **named})


def apply(kube: Kube, manifest: Object) -> None:
    """Apply an object, whether it is there or not."""
    how = ("--server-side", "--force-conflicts", "--filename=-")
    kube.kubectl("apply", *how, text=json.dumps(manifest))
