"""Kubernetes API calls as the operator needs them, over any transport.

Every method is one HTTP request and returns the server's copy of the object; nothing is retried here, because
the work queue retries whole passes and the informers retry their watches.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from stoker_operator.cluster.errors import ApiUnreachable, from_status
from stoker_operator.cluster.resources import Resource

Object = dict[str, Any]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
# JSON is a subset of the YAML this content type promises.
APPLY_PATCH = "application/apply-patch+yaml"
# https://kubernetes.io/docs/reference/using-api/api-concepts/#field-validation
_STRICTLY = {"fieldValidation": "Strict"}


@dataclass(frozen=True)
class Reply:
    """An answer of the API server, read to its end."""

    code: int
    body: bytes
    retry_after: str | None = None


class Transport(Protocol):
    """Moves one request to the API server; knows addresses, credentials and timeouts."""

    async def request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Reply:
        """Send and read the whole answer; raises ``ApiUnreachable`` when none came."""

    def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """GET line by line; raises ``ApiError`` for a refusal, ``ApiUnreachable`` when the stream breaks."""


@dataclass(frozen=True)
class ListPage:
    """One page of a list."""

    items: list[Object]
    resource_version: str
    continue_token: str


@dataclass(frozen=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK and the object."""

    type: str
    object: Object


class KubeClient:
    """The API calls.

    Args:
        transport: how requests travel.
        field_manager: our name in managedFields.
    """

    def __init__(self, transport: Transport, field_manager: str = "stoker-operator") -> None:
        self._transport = transport
        self._field_manager = field_manager

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None,
        selector: str,
        limit: int,
        continue_token: str = "",
        field_selector: str = "",
    ) -> ListPage:
        """One page of the objects that match.

        Args:
            resource: kind to list.
            namespace: None lists all.
            selector: label selector; "" matches everything.
            limit: objects a page, at most.
            continue_token: of the page before.
            field_selector: "" matches everything.

        Raises:
            Gone: the token is too old.
        """
        params = {"limit": str(limit)}
        if selector:
            params["labelSelector"] = selector
        if field_selector:
            params["fieldSelector"] = field_selector
        if continue_token:
            params["continue"] = continue_token
        answer = await self._call("GET", resource.url(namespace), params)
        metadata = answer.get("metadata") or {}
        return ListPage(
            items=answer.get("items") or [],
            resource_version=str(metadata.get("resourceVersion") or ""),
            continue_token=str(metadata.get("continue") or ""),
        )

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        selector: str,
        resource_version: str,
        timeout_s: int,
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events after ``resource_version`` until the server ends the stream after ``timeout_s`` seconds.

        Raises:
            Gone: the version is too old, list again.
            ApiUnreachable: a line is no event; something between us and the server speaks for it.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_s),
        }
        if selector:
            params["labelSelector"] = selector
        if field_selector:
            params["fieldSelector"] = field_selector
        async with aclosing(self._transport.stream(resource.url(namespace), params)) as lines:
            async for line in lines:
                event = _event(line)
                if event.type == "ERROR":
                    code = event.object.get("code")
                    raise from_status(code if isinstance(code, int) else 500, event.object)
                yield event

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Read one object, live; raises ``NotFound``."""
        return await self._call("GET", resource.url(namespace, name))

    async def create(self, resource: Resource, manifest: Object) -> Object:
        """Create; raises ``AlreadyExists`` when the name is taken.

        A field that the API server does not know is refused by its name, instead of left out in silence.
        """
        path = resource.url(manifest["metadata"]["namespace"])
        return await self._call("POST", path, self._as_manager(**_STRICTLY), manifest)

    async def apply(self, resource: Resource, manifest: Object, subresource: str | None = None) -> Object:
        """Server-side apply of exactly these fields; those we applied before and left out now are removed.

        ``metadata.uid`` in the manifest makes it fail with ``Conflict`` on another object of that name.
        Unknown fields are refused, but for those of a status, which must also reach an older CRD.
        """
        metadata = manifest["metadata"]
        path = resource.url(metadata.get("namespace"), metadata["name"], subresource)
        how = {"force": "true", **({} if subresource else _STRICTLY)}
        return await self._call("PATCH", path, self._as_manager(**how), manifest, APPLY_PATCH)

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Object) -> Object:
        """Set single fields of an object that exists; ``metadata.uid`` in the patch is a precondition."""
        path = resource.url(namespace, name)
        return await self._call("PATCH", path, self._as_manager(), patch, MERGE_PATCH)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> Object:
        """Delete the object with this uid; its own grace period applies.

        Returns:
            the object (with a deletionTimestamp while it terminates), or a Status when it is gone already.

        Raises:
            NotFound: gone already.
            Conflict: another object has that name now.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        return await self._call("DELETE", resource.url(namespace, name), {}, options)

    def _as_manager(self, **params: str) -> dict[str, str]:
        return {"fieldManager": self._field_manager, **params}

    async def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> Object:
        data = None if body is None else orjson.dumps(body)
        reply = await self._transport.request(method, path, params or {}, data, content_type)
        if reply.code >= 400:
            raise from_status(reply.code, error_body(reply.body), reply.retry_after)
        answer = _object(reply.body)
        if answer is None:
            raise ApiUnreachable(f"{method} {path}: not an answer of the API: {_shown(reply.body)}")
        return answer


def error_body(body: bytes) -> Object:
    """The Status object of an error answer; a proxy's plain text becomes the message of one."""
    status = _object(body)
    return {"message": _shown(body)} if status is None else status


def _event(line: bytes) -> WatchEvent:
    event = _object(line) or {}
    kind, obj = event.get("type"), event.get("object")
    if not (isinstance(kind, str) and isinstance(obj, dict)):
        raise ApiUnreachable(f"not an event of a watch: {_shown(line)}")
    return WatchEvent(kind, obj)


def _object(body: bytes) -> Object | None:
    """The JSON object that a body is, None when it is anything else."""
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _shown(body: bytes) -> str:
    return body[:200].decode(errors="replace")
