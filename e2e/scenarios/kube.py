"""A small client of a Kubernetes API server: plain dictionaries in and out, with lightkube's credentials.

Users' own steps (`kubectl apply`, `scale`, `drain`) run the real kubectl; what it looks at is read here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import yaml
from lightkube import KubeConfig
from lightkube.config.client_adapter import Client as http_client
from lightkube.config.client_adapter import ConnectionParams

Object = dict[str, Any]

_KINDS = {
    "Namespace": ("/api/v1", "namespaces"),
    "Node": ("/api/v1", "nodes"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "PersistentVolume": ("/api/v1", "persistentvolumes"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Event": ("/api/v1", "events"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "ControllerRevision": ("/apis/apps/v1", "controllerrevisions"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "ModelDeployment": ("/apis/stoker.dev/v1alpha1", "modeldeployments"),
}
_CLUSTER_SCOPED = {"Namespace", "Node", "PersistentVolume", "CustomResourceDefinition"}


class HasKubectl(Protocol):
    """What knows where the API server is: a cluster, or a control plane without nodes."""

    @property
    def kubeconfig(self) -> Path: ...

    def kubectl(self, *args: str) -> list[str]: ...


class Refused(Exception):
    """The API server said no.

    Attributes:
        status: the HTTP status.
        message: the API server's words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Kube:
    """One API server, as its administrator."""

    def __init__(self, cluster: HasKubectl) -> None:
        config = KubeConfig.from_file(cluster.kubeconfig).get()
        assert config is not None, f"{cluster.kubeconfig} has no current context"
        self._http = http_client(config, ConnectionParams(trust_env=False))
        self._cluster = cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: object = None, **params: Any) -> Any:
        """Make one request and return its JSON. `content_type` in params names the body's type.

        Raises:
            Refused: the status is 400 or more.
        """
        content_type = params.pop("content_type", "application/json")
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        response = self._http.request(method, path, content=content, headers=headers, params=params)
        if response.status_code >= 400:
            is_json = "json" in response.headers.get("Content-Type", "")
            raise Refused(response.status_code, response.json()["message"] if is_json else response.text)
        return response.json()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None when there is none."""
        try:
            found: Object = self.request("GET", path(kind, namespace, name))
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise
        return found

    def get_all(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Object]:
        """Return the objects of a kind, in name order."""
        answer = self.request("GET", path(kind, namespace), labelSelector=selector)
        return sorted(answer["items"], key=lambda item: item["metadata"]["name"])

    def apply(self, manifest: Object, *, dry_run: bool = False, field_manager: str = "e2e") -> Object:
        """Apply a manifest on the server's side and return the object.

        Raises:
            Refused: the schema or a rule does not allow it, or a field belongs to somebody else.
        """
        metadata = manifest["metadata"]
        where = path(manifest["kind"], metadata.get("namespace"), metadata["name"])
        params = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        if dry_run:
            params["dryRun"] = "All"
        content_type = "application/apply-patch+yaml"
        applied: Object = self.request("PATCH", where, manifest, content_type=content_type, **params)
        return applied

    def merge(
        self, kind: str, name: str, namespace: str | None, patch: Object, subresource: str = ""
    ) -> Object:
        """Send a JSON merge patch and return the object."""
        where = path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        content_type = "application/merge-patch+json"
        merged: Object = self.request("PATCH", where, patch, content_type=content_type)
        return merged

    def delete(self, kind: str, name: str, namespace: str | None = None, **options: Any) -> None:
        """Delete an object if it is there; `options` are fields of DeleteOptions."""
        try:
            self.request("DELETE", path(kind, namespace, name), options or None)
        except Refused as refusal:
            if refusal.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str = "", *, previous: bool = False) -> str:
        """Return the last 200 lines of a container's log; why there is none, when there is none."""
        where = f"{path('Pod', namespace, pod)}/log"
        params = {"container": container, "tailLines": "200", "previous": str(previous).lower()}
        answer = self._http.get(where, params={name: value for name, value in params.items() if value})
        return answer.text

    def kubectl(self, *args: str, text: str | None = None, timeout_s: float = 120) -> str:
        """Run kubectl to its end and return its output.

        Raises:
            AssertionError: it failed; its error output is in the text.
        """
        command = self._cluster.kubectl(*args)
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr or done.stdout}"
        return done.stdout

    def start_kubectl(self, *args: str) -> subprocess.Popen[str]:
        """Start kubectl with pipes on its standard input and output."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._cluster.kubectl(*args), stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def path(kind: str, namespace: str | None = None, name: str = "") -> str:
    """Return the URL path of an object, or of all objects of a kind when there is no name."""
    prefix, plural = _KINDS[kind]
    scope = f"/namespaces/{namespace}" if namespace and kind not in _CLUSTER_SCOPED else ""
    return f"{prefix}{scope}/{plural}" + (f"/{name}" if name else "")


def load_manifests(file: Path) -> Sequence[Object]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def condition(thing: Object | None, kind: str) -> Object:
    """Return one of an object's status conditions; an empty one when it is not there."""
    conditions = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((found for found in conditions if found["type"] == kind), {})


def is_true(thing: Object | None, kind: str) -> bool:
    """Whether a condition is True and speaks of the object's current generation."""
    found = condition(thing, kind)
    if thing is None or found.get("status") != "True":
        return False
    generation = thing["metadata"].get("generation")
    return bool(found.get("observedGeneration", generation) == generation)
