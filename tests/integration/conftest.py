"""A real API server with the CRD on it; one for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from cluster.integration import ControlPlane, control_plane
from cluster.prerequisites import no_build
from scenarios.files import CRD_FILE
from scenarios.kube import Kube, is_true
from scenarios.waiting import eventually


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """etcd, an API server on loopback and the controllers (service accounts, garbage collection)."""
    problem = no_build("integration")
    if problem:
        pytest.skip(f"no API server without kubelets: {problem}")
    with control_plane(controllers=True) as running:
        yield running


@pytest.fixture(scope="session")
def kube(plane: ControlPlane) -> Iterator[Kube]:
    """A client of an API server that knows ModelDeployments."""
    crd = yaml.safe_load(CRD_FILE.read_text())
    name = crd["metadata"]["name"]
    with Kube(plane) as client:
        client.apply(crd)

        def is_served() -> bool:
            is_established = is_true(client.get("CustomResourceDefinition", name), "Established")
            return (
                is_established and "apis/stoker.dev/v1alpha1" in client.request("GET", "/openapi/v3")["paths"]
            )

        eventually("the CRD is established and described", is_served, 30)
        yield client
