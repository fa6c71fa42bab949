"""One ModelDeployment, the README's example, through its life: each test leaves it settled for the next."""

from __future__ import annotations

import json

import pytest

import product
from scenarios import manifests, models
from scenarios.audit import AuditLog, Write
from scenarios.clientpod import ClientPod
from scenarios.files import EXAMPLE, EXAMPLE_AUTOSCALER
from scenarios.kube import Kube, Object, is_true, load_manifests, path
from scenarios.models import Model
from scenarios.platform import Platform, names, temporary_namespace
from scenarios.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

CAUSE_WITHIN_S = 5.0  # a cause that a pod shows is in the status this soon


@pytest.fixture(scope="module")
def example(kube: Kube, namespace: str) -> Model:
    """The example, applied the way the README says."""
    kube.kubectl("apply", "--namespace", namespace, "--filename", str(EXAMPLE))
    (manifest,) = (found for found in load_manifests(EXAMPLE) if found["kind"] == "ModelDeployment")
    model = Model(kube, namespace, manifest["metadata"]["name"])
    model.wait_settled()
    return model


def chat(clients: ClientPod, url: str, model: str, **fields: object) -> Object:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0, **fields}
    answer: Object = clients.ask(f"{url}/v1/chat/completions", body)
    return answer


def served_name(model: Model) -> str:
    observed = model.observed()
    assert observed is not None
    return str(observed["spec"]["model"].get("servedName") or model.name)


def uids(pods: list[Object]) -> dict[str, tuple[str, int]]:
    """The pods' identities and how often their containers restarted."""
    restarts = {
        pod["metadata"]["name"]: sum(entry["restartCount"] for entry in pod["status"]["containerStatuses"])
        for pod in pods
    }
    return {
        pod["metadata"]["name"]: (pod["metadata"]["uid"], restarts[pod["metadata"]["name"]]) for pod in pods
    }


def test_example_answers_another_pod_through_its_service_name(example: Model, clients: ClientPod) -> None:
    url = example.status()["url"]
    assert url.startswith(f"http://{example.name}.{example.namespace}.svc")
    answer = chat(clients, url, served_name(example))
    assert answer["status"] == 200, answer
    assert "Paris" in answer["body"]["choices"][0]["message"]["content"]

    streamed = chat(clients, url, served_name(example), stream=True)
    assert streamed["events"][-1] == "[DONE]"
    chunks = [json.loads(event) for event in streamed["events"][:-1]]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == answer["body"]["choices"][0]["message"]["content"]


def test_status_says_ready_in_the_words_that_tools_read(example: Model, kube: Kube) -> None:
    where = ("--namespace", example.namespace, f"mdep/{example.name}")
    kube.kubectl("wait", *where, "--for=condition=Ready", "--timeout=10s")
    observed = example.observed()
    assert observed is not None
    for kind, status in {"Ready": "True", "Scheduled": "True", "ModelLoaded": "True"}.items():
        found = example.condition(kind)
        assert found["status"] == status, found
        assert found["observedGeneration"] == observed["metadata"]["generation"]
        assert found["reason"]
    assert example.name in kube.kubectl("get", "stoker", "--namespace", example.namespace)


def test_objects_carry_no_trace_of_the_operator_but_its_status(example: Model) -> None:
    observed = example.observed()
    assert observed is not None
    assert "finalizers" not in observed["metadata"]
    ours = {"kubectl.kubernetes.io/last-applied-configuration"}
    assert set(observed["metadata"].get("annotations", {})) <= ours
    writers = {
        entry["manager"] for entry in observed["metadata"]["managedFields"] if not entry.get("subresource")
    }
    assert writers == {"kubectl-client-side-apply"}


@pytest.mark.parametrize("idle_s", [15.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_second_apply_and_an_idle_while_write_nothing(
    example: Model, kube: Kube, platform: Platform, idle_s: float
) -> None:
    log = AuditLog.from_now(platform.cluster.audit_log)
    said = kube.kubectl("apply", "--namespace", example.namespace, "--filename", str(EXAMPLE))
    assert "unchanged" in said
    writes = log.collect(idle_s)
    kubelets = ("system:node:", "system:serviceaccount:kube-system:")
    assert [
        write for write in writes if write.namespace == example.namespace and not from_(write, *kubelets)
    ] == []
    ours = {example.namespace, product.NAMESPACE, ""}
    operator = f"system:serviceaccount:{product.NAMESPACE}:"
    written = [write for write in writes if from_(write, operator) and write.namespace in ours]
    # The leader renews its Lease once a second, which is all it says meanwhile.
    assert [write for write in written if write.resource != "leases"] == []
    assert 0 < len(written) <= 1.5 * idle_s


def from_(write: Write, *users: str) -> bool:
    return write.user.startswith(users)


def test_chart_upgrade_restarts_no_runtime_pod(example: Model, kube: Kube, platform: Platform) -> None:
    before = uids(example.pods())
    platform.upgrade_chart({"runtimeImage.tag": "another", "podAnnotations.stoker\\.dev/upgraded": "yes"})
    try:
        # A Service that comes back shows that the new operator has looked at everything.
        kube.delete("Service", example.name, example.namespace)
        eventually("the Service is back", lambda: kube.get("Service", example.name, example.namespace), 60)
        example.wait_settled()
        assert uids(example.pods()) == before
    finally:
        platform.upgrade_chart({})
    assert uids(example.pods()) == before


def test_rolling_update_keeps_the_old_pod_until_the_new_one_serves(
    example: Model, clients: ClientPod
) -> None:
    (old,) = names(example.pods())
    old_revision = example.status()["revision"]
    example.edit(engine={"maxModelLen": 1024})

    def new_pod_serves() -> bool:
        serving = example.serving_pods()
        assert serving, "at no moment may nobody serve"
        return old not in serving

    eventually("the new pod takes over", new_pod_serves, 120, example.explain)
    example.wait_settled()
    assert example.status()["revision"] != old_revision
    assert chat(clients, example.status()["url"], served_name(example))["status"] == 200


def test_broken_revision_leaves_the_old_one_serving_and_says_why(example: Model, clients: ClientPod) -> None:
    serving = example.serving_pods()
    example.edit(pod={"image": "localhost/no-such-runtime:1"})

    def pod_shows_it() -> bool:
        states = [
            entry["state"] for pod in example.pods() for entry in pod["status"].get("containerStatuses", [])
        ]
        return any(
            state.get("waiting", {}).get("reason") in ("ErrImagePull", "ImagePullBackOff") for state in states
        )

    eventually("the pod shows that its image is missing", pod_shows_it, 60, example.explain)
    found = example.wait_reason("Ready", "ImagePullFailed", timeout_s=CAUSE_WITHIN_S)
    assert found["status"] == "False"
    assert "localhost/no-such-runtime:1" in found["message"]
    assert example.serving_pods() == serving
    assert chat(clients, example.status()["url"], served_name(example))["status"] == 200


def test_second_edit_in_mid_rollout_converges_on_the_newest(example: Model) -> None:
    broken_revision = example.status()["revision"]
    example.edit(pod={"image": None}, engine={"maxModelLen": 1536})
    example.wait_settled()
    (pod,) = example.pods()
    assert pod["metadata"]["labels"]["stoker.dev/revision"] == example.status()["revision"] != broken_revision
    (engine,) = (entry for entry in pod["spec"]["containers"] if entry["name"] == "engine")
    assert "1536" in " ".join(engine["args"])


@pytest.mark.long  # tests/operator/plan/test_paused.py has it
def test_pause_holds_the_rollout_but_not_the_scale(example: Model, kube: Kube) -> None:
    (old,) = example.pods()
    example.edit(rollout={"paused": True}, engine={"maxModelLen": 768})
    example.wait_reason("Reconciling", "Paused")
    kube.kubectl("scale", "--namespace", example.namespace, f"mdep/{example.name}", "--replicas=2")
    eventually("both pods serve", lambda: len(example.serving_pods()) == 2, 120, example.explain)
    revisions = {pod["metadata"]["labels"]["stoker.dev/revision"] for pod in example.alive_pods()}
    assert revisions == {old["metadata"]["labels"]["stoker.dev/revision"]}

    kube.kubectl("scale", "--namespace", example.namespace, f"mdep/{example.name}", "--replicas=1")
    example.edit(rollout={"paused": False})
    example.wait_settled()
    assert old["metadata"]["name"] not in names(example.pods())


def test_scale_selects_the_pods_that_an_autoscaler_counts(example: Model, kube: Kube, namespace: str) -> None:
    where = ("--namespace", namespace, "--filename", str(EXAMPLE_AUTOSCALER))
    kube.kubectl("apply", *where)
    (autoscaler,) = load_manifests(EXAMPLE_AUTOSCALER)
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == example.name

    def able_to_scale() -> bool:
        found = kube.get("HorizontalPodAutoscaler", autoscaler["metadata"]["name"], namespace)
        return is_true(found, "AbleToScale")

    eventually("the autoscaler can read /scale", able_to_scale, 60)
    scale = json.loads(kube.kubectl("get", "--raw", f"{kube_path(example)}/scale"))
    assert scale["spec"]["replicas"] == scale["status"]["replicas"] == 1
    selected = kube.get_all("Pod", namespace, scale["status"]["selector"])
    assert names(selected) == names(example.pods())
    kube.kubectl("delete", *where)


def kube_path(model: Model) -> str:
    return path("ModelDeployment", model.namespace, model.name)


@pytest.mark.long  # tests/operator/reconcile/test_namespaces.py has it on a fake API
def test_a_second_namespace_may_use_the_same_name(example: Model, kube: Kube, clients: ClientPod) -> None:
    before = uids(example.pods())
    with temporary_namespace(kube, "e2e-other") as other:
        twin = models.apply(kube, manifests.modeldeployment(example.name, other))
        twin.wait_settled()
        urls = [model.status()["url"] for model in (example, twin)]
        assert len(set(urls)) == 2
        assert [chat(clients, urls[1], example.name)["status"]] == [200]
        kube.delete("ModelDeployment", twin.name, other)
        twin.wait_gone()
    assert uids(example.pods()) == before


def test_suspend_takes_the_pods_and_keeps_the_address(example: Model, kube: Kube, clients: ClientPod) -> None:
    service = kube.get("Service", example.name, example.namespace)
    assert service is not None
    example.edit(suspend=True)
    eventually("all pods are gone", lambda: not example.pods(), 120, example.explain)
    found = example.wait_reason("Ready", "Suspended")
    assert found["status"] == "True", "as asked, so that kstatus calls it current"
    example.wait_reason("Reconciling", "AsExpected")
    example.edit(suspend=False)
    example.wait_settled()
    again = kube.get("Service", example.name, example.namespace)
    assert again is not None
    assert again["spec"]["clusterIP"] == service["spec"]["clusterIP"]
    assert chat(clients, example.status()["url"], served_name(example))["status"] == 200


def test_delete_leaves_nothing_behind_even_while_the_operator_is_away(
    example: Model, kube: Kube, platform: Platform
) -> None:
    platform.scale_operator(0)
    try:
        kube.kubectl("delete", "mdep", example.name, "--namespace", example.namespace, "--timeout=20s")
        example.wait_gone()
    finally:
        platform.scale_operator(1)
    twin = models.apply(kube, manifests.modeldeployment(example.name, example.namespace))
    twin.wait_settled()
    kube.kubectl("delete", "mdep", example.name, "--namespace", example.namespace, "--timeout=20s")
    twin.wait_gone()
