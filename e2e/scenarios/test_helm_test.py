"""`helm test` as a user runs it: it serves a model, asks it, prints what happens and leaves nothing."""

from __future__ import annotations

import subprocess

import pytest

import product
from scenarios.kube import Kube
from scenarios.manifests import MODEL_IMAGE
from scenarios.platform import DEPLOYMENT_LABEL, Platform, temporary_namespace
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420, func_only=True)]

NAME = "stoker-test"
SERVED = {
    "test.modelSource": f"oci://{MODEL_IMAGE}",
    "test.timeoutSeconds": "180",
    "test.resources.requests.memory": "700Mi",
}


def helm_test(platform: Platform) -> subprocess.CompletedProcess[str]:
    """Run it to its end; helm prints the log of the test's pod as well, also after a failure."""
    command = [platform.cluster.tool("helm"), "test", product.RELEASE, "--namespace", product.NAMESPACE]
    command += ["--kubeconfig", str(platform.cluster.kubeconfig), "--timeout", "240s", "--logs"]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )


def assert_nothing_is_left(kube: Kube, namespace: str) -> None:
    assert kube.get("ModelDeployment", NAME, namespace) is None
    selector = f"{DEPLOYMENT_LABEL}={NAME}"
    eventually("its pods have gone", lambda: not kube.get_all("Pod", namespace, selector), 90)


def answer_of(done: subprocess.CompletedProcess[str]) -> str:
    """Check that it succeeded and printed what happened; return the line of the answer."""
    assert done.returncode == 0, done.stdout
    assert "Phase:          Succeeded" in done.stdout
    assert "Ready=True Ready: " in done.stdout
    (answer,) = [line for line in done.stdout.splitlines() if " s  answer: " in line]
    assert "Paris" in answer
    assert done.stdout.index("Ready=False ") < done.stdout.index("Ready=True ") < done.stdout.index(answer)
    return answer


@pytest.mark.long  # as the next one, with fewer settings
def test_it_serves_a_model_and_prints_its_answer(platform: Platform) -> None:
    platform.upgrade_chart(SERVED)
    try:
        done = helm_test(platform)
    finally:
        platform.upgrade_chart({})
    answer_of(done)
    assert_nothing_is_left(platform.kube, product.NAMESPACE)


def test_it_serves_where_the_operator_watches_and_pods_take_the_users_that_images_name(
    platform: Platform, figures: list[str]
) -> None:
    """Also with the defaults of runtime pods that air-gapped clusters set."""
    kube = platform.kube
    with temporary_namespace(kube, "e2e-tested") as ours:
        settings = {
            **SERVED,
            "namespaces": f"{{{ours}}}",
            "assignedUser": "true",
            "runtimeImage.pullPolicy": "Never",
            "runtimePods.imagePullSecrets[0].name": "absent",
            "runtimePods.env.NO_PROXY": ".svc",
            "runtimePods.caBundle.configMap": "absent",
        }
        platform.upgrade_chart(settings)
        try:
            done = helm_test(platform)
        finally:
            platform.upgrade_chart({})
        figures.append(f"helm test:{answer_of(done)}")
        assert f"serve oci://{MODEL_IMAGE} as {ours}/{NAME}" in done.stdout
        assert_nothing_is_left(kube, ours)


@pytest.mark.long  # minutes, most of them waited out: tests/operator/test_selftest.py has it on a fake API
def test_a_model_that_cannot_be_served_fails_with_its_conditions(platform: Platform) -> None:
    platform.upgrade_chart({**SERVED, "test.modelSource": "oci://localhost/no-such-model:1"})
    try:
        done = helm_test(platform)
    finally:
        platform.upgrade_chart({})
    assert done.returncode != 0
    assert "FAILED: it has been stalled for 60 s" in done.stdout, done.stdout
    assert "Stalled=True ImagePullFailed: " in done.stdout
    assert "no-such-model:1" in done.stdout
    assert_nothing_is_left(platform.kube, product.NAMESPACE)
