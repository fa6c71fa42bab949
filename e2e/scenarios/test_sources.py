"""Models from a hub and from a claim, in the image that users run: read-only, not root, no way out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scenarios import models
from scenarios import shelf as shelves
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.shelf import REPOSITORY_ID, TOKEN, Shelf

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def served(kube: Kube, namespace: str, shelf: Shelf) -> Iterator[dict[str, Model]]:
    """The same model from each kind of source, all started at once; and from the hub without its token."""
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hub", "namespace": namespace},
            "stringData": {"token": TOKEN},
        }
    )
    claim, hub = shelves.claim(kube, shelf, namespace), f"hf://{REPOSITORY_ID}@main"
    wanted = {
        "hub": shelf.modeldeployment("hub", namespace, hub, secretName="hub"),
        "claim": shelf.modeldeployment("claim", namespace, f"pvc://{claim}/tiny"),
        "stranger": shelf.modeldeployment("stranger", namespace, hub),
    }
    applied = {name: models.apply(kube, manifest) for name, manifest in wanted.items()}
    yield applied
    # All else goes with the namespace.
    kube.delete("PersistentVolume", f"{claim}-{namespace}")


def complete(clients: ClientPod, model: Model) -> str:
    """Ask for a few tokens and return their text."""
    body = {"model": model.name, "prompt": "once upon a time", "max_tokens": 8, "temperature": 0}
    answer = clients.ask(f"{model.status()['url']}/v1/completions", {**body, "ignore_eos": True})
    assert answer["status"] == 200, answer
    assert answer["body"]["usage"]["completion_tokens"] == 8
    return str(answer["body"]["choices"][0]["text"])


def test_every_source_leads_to_the_same_answer(served: dict[str, Model], clients: ClientPod) -> None:
    ready = [served["hub"], served["claim"]]
    for model in ready:
        model.wait_settled()
    texts = [complete(clients, model) for model in ready]
    assert texts[0] == texts[1]


def test_download_is_over_when_the_engine_starts(served: dict[str, Model]) -> None:
    """The engine reads what the init container left in the volume: as another user, and without a hub."""
    (pod,) = served["hub"].pods()
    assert pod["spec"]["securityContext"]["fsGroup"] > 0
    (fetch,) = pod["status"]["initContainerStatuses"]
    assert fetch["state"]["terminated"]["exitCode"] == 0
    containers = {
        found["name"]: found for found in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
    }
    assert all(found["securityContext"]["readOnlyRootFilesystem"] for found in containers.values())
    assert variables(containers["fetch"]) >= {"HF_HOME", "HF_TOKEN", "HF_ENDPOINT"}
    assert variables(containers["engine"]) >= {"HF_HOME", "HF_HUB_OFFLINE"}
    assert "HF_TOKEN" not in variables(containers["engine"])


def variables(container: Object) -> set[str]:
    return {variable["name"] for variable in container["env"]}


def test_without_the_token_the_status_says_so(served: dict[str, Model]) -> None:
    found = served["stranger"].wait_reason("Ready", "ModelAccessDenied")
    assert REPOSITORY_ID in found["message"]
    assert served["stranger"].condition("Stalled")["status"] == "True"
