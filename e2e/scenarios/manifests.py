"""What scenarios apply: builders that default everything."""

from __future__ import annotations

import copy
from typing import Any

from scenarios.kube import Object

MODEL_IMAGE = "localhost/smollm2:1"
SMALL_POD: Object = {
    # One thread each: several pods share the cores of one machine, and threads wait for each other.
    "resources": {
        "requests": {"cpu": "100m", "memory": "700Mi"},
        "limits": {"cpu": "1500m", "memory": "3Gi"},
    },
    "terminationGracePeriodSeconds": 120,
}
SMALL_ENGINE: Object = {"maxModelLen": 2048, "maxNumSeqs": 32}


def modeldeployment(name: str, namespace: str, **spec: Any) -> Object:
    """Return a ModelDeployment of SmolLM2 on CPUs; `spec` replaces whole fields of its spec."""
    fields: Object = {
        "model": {"source": f"oci://{MODEL_IMAGE}", "servedName": name},
        "engine": copy.deepcopy(SMALL_ENGINE),
        "accelerator": {"perPod": 0},
        "pod": copy.deepcopy(SMALL_POD),
        "replicas": 1,
    }
    return {
        "apiVersion": "stoker.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**fields, **spec},
    }


def namespace_manifest(name: str, pod_security: str = "restricted") -> Object:
    """Return a namespace that refuses pods below a pod security level."""
    labels = {"pod-security.kubernetes.io/enforce": pod_security, "stoker.dev/e2e": "true"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
