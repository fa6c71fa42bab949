"""What each container may use: a quota that counts limits takes the pod, and the pod can be Guaranteed."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import make_wanted, shape_of

HUB = {"source": "hf://org/name"}


def containers(**spec: Any) -> dict[str, dict[str, Any]]:
    pod = shape_of(make_wanted(**spec)).leader["spec"]
    return {found["name"]: found for found in (*pod.get("initContainers", ()), *pod["containers"])}


def resources(**spec: Any) -> dict[str, Any]:
    return {name: found.get("resources", {}) for name, found in containers(**spec).items()}


def quality_of_service(found: dict[str, Any]) -> str:
    """The class that Kubernetes computes, as its page says.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/
    """
    amounts = [found[name].get(kind, {}) for name in found for kind in ("requests", "limits")]
    if not any(key in amount for amount in amounts for key in ("cpu", "memory")):
        return "BestEffort"
    is_guaranteed = all(
        key in found[name].get("limits", {})
        and found[name].get("requests", {}).get(key, found[name]["limits"][key]) == found[name]["limits"][key]
        for name in found
        for key in ("cpu", "memory")
    )
    return "Guaranteed" if is_guaranteed else "Burstable"


def test_a_quota_that_counts_limits_finds_them_on_every_container() -> None:
    asked = {"requests": {"cpu": 4, "memory": "24Gi"}, "limits": {"cpu": 8, "memory": "32Gi"}}
    found = resources(model=HUB, pod={"resources": asked}, accelerator={"perPod": 1})
    assert found["fetch"] == asked
    assert found["engine"]["limits"] == {**asked["limits"], "nvidia.com/gpu": "1"}


def test_a_pod_with_equal_requests_and_limits_is_guaranteed() -> None:
    limits = {"cpu": 8, "memory": "32Gi"}
    assert quality_of_service(resources(model=HUB, pod={"resources": {"limits": limits}})) == "Guaranteed"
    fetch = {"resources": {"limits": {"cpu": 1, "memory": "2Gi"}}}
    found = resources(model={**HUB, "fetch": fetch}, pod={"resources": {"limits": limits}})
    assert quality_of_service(found) == "Guaranteed"
    assert found["fetch"]["limits"] == {"cpu": 1, "memory": "2Gi"}


def test_a_download_has_no_more_kinds_than_it_uses() -> None:
    amounts = {"memory": "8Gi", "hugepages-2Mi": "1Gi", "rdma/hca": 1, "ephemeral-storage": "90Gi"}
    found = resources(model=HUB, pod={"resources": {"limits": amounts}})
    assert found["fetch"] == {"limits": {"memory": "8Gi", "ephemeral-storage": "90Gi"}}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"model": HUB}, id="no-resources"),
        pytest.param({"model": HUB, "pod": {"resources": {}}}, id="empty-resources"),
        pytest.param(
            {"model": HUB, "pod": {"resources": {"limits": {"rdma/hca": 1}}}}, id="none-of-a-download"
        ),
    ],
)
def test_what_is_not_asked_for_is_left_out(spec: dict[str, Any]) -> None:
    assert "resources" not in containers(**spec)["fetch"]


def test_resources_of_the_download_alone() -> None:
    found = resources(model={**HUB, "fetch": {"resources": {"requests": {"memory": "1Gi"}}}})
    assert found == {"fetch": {"requests": {"memory": "1Gi"}}, "engine": {}}
