"""Models from a hub, a bucket and a claim, in the image that users run: read-only, not root, no way out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scenarios import models
from scenarios import shelf as shelves
from scenarios.clientpod import ClientPod
from scenarios.kube import Kube, Object
from scenarios.models import Model
from scenarios.shelf import BUCKET, FOLDER, KEYS, REPOSITORY_ID, TOKEN, Shelf

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture(scope="module")
def served(kube: Kube, namespace: str, shelf: Shelf) -> Iterator[dict[str, Model]]:
    """The same model from each kind of source, all started at once; and with no token, and another's key."""
    secrets = {
        "hub": {"token": TOKEN},
        "bucket": KEYS,
        "other-key": {**KEYS, "AWS_SECRET_ACCESS_KEY": "another"},
    }
    for name, content in secrets.items():
        kube.apply(secret(name, namespace, content))
    claim, hub = shelves.claim(kube, shelf, namespace), f"hf://{REPOSITORY_ID}@main"
    bucket = f"s3://{BUCKET}/{FOLDER}"
    wanted = {
        "hub": shelf.modeldeployment("hub", namespace, hub, secretName="hub"),
        "claim": shelf.modeldeployment("claim", namespace, f"pvc://{claim}/tiny"),
        "bucket": shelf.modeldeployment("bucket", namespace, bucket, secretName="bucket"),
        "stranger": shelf.modeldeployment("stranger", namespace, hub),
        "other-key": shelf.modeldeployment("other-key", namespace, bucket, secretName="other-key"),
    }
    applied = {name: models.apply(kube, manifest) for name, manifest in wanted.items()}
    yield applied
    # All else goes with the namespace.
    kube.delete("PersistentVolume", f"{claim}-{namespace}")


def secret(name: str, namespace: str, content: dict[str, str]) -> Object:
    """Return a Secret."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


def complete(clients: ClientPod, model: Model) -> str:
    """Ask for a few tokens and return their text."""
    body = {"model": model.name, "prompt": "once upon a time", "max_tokens": 8, "temperature": 0}
    answer = clients.ask(f"{model.status()['url']}/v1/completions", {**body, "ignore_eos": True})
    assert answer["status"] == 200, answer
    assert answer["body"]["usage"]["completion_tokens"] == 8
    return str(answer["body"]["choices"][0]["text"])


def test_every_source_leads_to_the_same_answer(served: dict[str, Model], clients: ClientPod) -> None:
    ready = [served["hub"], served["bucket"], served["claim"]]
    for model in ready:
        model.wait_settled()
    texts = [complete(clients, model) for model in ready]
    assert texts == [texts[0]] * len(ready)


@pytest.mark.parametrize(("name", "credentials"), [("hub", {"HF_TOKEN"}), ("bucket", set(KEYS))])
def test_download_is_over_when_the_engine_starts(
    served: dict[str, Model], name: str, credentials: set[str]
) -> None:
    """The engine reads what the init container left in the volume: as another user, without credentials."""
    (pod,) = served[name].pods()
    assert pod["spec"]["securityContext"]["fsGroup"] > 0
    (fetch,) = pod["status"]["initContainerStatuses"]
    assert fetch["state"]["terminated"]["exitCode"] == 0
    containers = {
        found["name"]: found for found in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
    }
    assert all(found["securityContext"]["readOnlyRootFilesystem"] for found in containers.values())
    assert variables(containers["fetch"]) >= {"HF_HOME", "HF_ENDPOINT", "AWS_ENDPOINT_URL", *credentials}
    assert variables(containers["engine"]) >= {"HF_HOME", "HF_HUB_OFFLINE"}
    assert not credentials & variables(containers["engine"])


def variables(container: Object) -> set[str]:
    return {variable["name"] for variable in container["env"]}


def test_without_the_token_the_status_says_so(served: dict[str, Model]) -> None:
    found = served["stranger"].wait_reason("Ready", "ModelAccessDenied")
    assert REPOSITORY_ID in found["message"]
    assert served["stranger"].condition("Stalled")["status"] == "True"


def test_another_key_to_the_bucket_is_named(served: dict[str, Model]) -> None:
    found = served["other-key"].wait_reason("Ready", "ModelAccessDenied")
    assert "SignatureDoesNotMatch" in found["message"]
    assert served["other-key"].condition("Stalled")["status"] == "True"
