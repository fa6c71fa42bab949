"""What a person wants to see of the cluster when a scenario failed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2

import product
from scenarios.kube import Kube, Object, Refused

MAX_LOG_BYTES = 6000


def sections(kube: Kube) -> Iterator[tuple[str, str]]:
    """Yield (title, text): ModelDeployments, pods, events and logs of the operator and of unready pods."""
    try:
        spaces = [
            space["metadata"]["name"] for space in kube.get_all("Namespace", selector="stoker.dev/e2e=true")
        ]
        yield "ModelDeployments", "\n".join(_model(model) for model in kube.get_all("ModelDeployment"))
        for space in spaces:
            pods = kube.get_all("Pod", space)
            yield f"pods in {space}", "\n".join(_pod(pod) for pod in pods)
            yield (
                f"events in {space}",
                "\n".join(_event(event) for event in kube.get_all("Event", space)[-40:]),
            )
            for pod in pods:
                yield from _logs(kube, pod, only_unready=True)
        for pod in kube.get_all("Pod", product.NAMESPACE):
            yield from _logs(kube, pod, only_unready=False)
    except (Refused, httpx2.HTTPError) as error:
        yield "no diagnosis", f"the API server did not answer: {error!r}"


def _model(model: Object) -> str:
    where = f"{model['metadata']['namespace']}/{model['metadata']['name']}"
    return f"{where} spec={json.dumps(model['spec'])} status={json.dumps(model.get('status'))}"


def _pod(pod: Object) -> str:
    metadata, status = pod["metadata"], pod.get("status", {})
    facts = {
        "phase": status.get("phase"),
        "node": pod["spec"].get("nodeName"),
        "serving": metadata.get("labels", {}).get("stoker.dev/serving"),
        "deletion": metadata.get("deletionTimestamp"),
        "containers": [entry.get("state") for entry in status.get("containerStatuses", [])],
        "scheduled": [entry for entry in status.get("conditions", []) if entry["status"] != "True"],
    }
    return f"{metadata['name']} {json.dumps(facts)}"


def _event(event: Object) -> str:
    about = event.get("involvedObject", {})
    return f"{event.get('reason')} {about.get('kind')}/{about.get('name')}: {event.get('message')}"


def _logs(kube: Kube, pod: Object, *, only_unready: bool) -> Iterator[tuple[str, str]]:
    metadata = pod["metadata"]
    for entry in pod.get("status", {}).get("containerStatuses", []):
        if only_unready and entry.get("ready"):
            continue
        title = f"log of {metadata['namespace']}/{metadata['name']}/{entry['name']}"
        yield title, kube.logs(metadata["namespace"], metadata["name"], entry["name"])[-MAX_LOG_BYTES:]
        if entry.get("restartCount"):
            text = kube.logs(metadata["namespace"], metadata["name"], entry["name"], previous=True)
            yield f"{title} before its restart", text[-MAX_LOG_BYTES:]
