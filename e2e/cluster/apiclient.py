"""The few questions that bringing a cluster up asks an API server, over plain HTTPS with a bearer token."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ApiClient:
    """One API server and one identity."""

    server: str
    ca_file: Path
    token: str

    def request(self, method: str, path: str, body: object = None, content_type: str = "") -> Any:
        """Make one request and decode its JSON answer (text when it is not JSON).

        Raises:
            urllib.error.HTTPError: the API server refused.
            OSError: it could not be reached.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server}{path}", data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", content_type or "application/json")
        # Proxy settings of the host are for the outside; the cluster is on this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca_file))),
        )
        with opener.open(request, timeout=10) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text

    def is_ready(self) -> bool:
        """Whether the server says it can serve."""
        try:
            return bool(self.request("GET", "/readyz") == "ok")
        except (OSError, http.client.HTTPException):
            return False

    def node_is_ready(self, name: str) -> bool:
        """Whether a node exists and its kubelet reports Ready."""
        try:
            node = self.request("GET", f"/api/v1/nodes/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        conditions = node.get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def advertise(self, node: str, resource: str, amount: int) -> None:
        """Put an extended resource on a node; the kubelet keeps what it does not know."""
        pointer = resource.replace("~", "~0").replace("/", "~1")
        patch = [
            {"op": "add", "path": f"/status/{field}/{pointer}", "value": str(amount)}
            for field in ("capacity", "allocatable")
        ]
        self.request("PATCH", f"/api/v1/nodes/{node}/status", patch, "application/json-patch+json")
