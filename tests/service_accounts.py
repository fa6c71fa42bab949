"""The account that pods of a namespace run under: without it they are refused."""

from __future__ import annotations

from scenarios.kube import Kube
from scenarios.waiting import eventually


def wait_for_account(kube: Kube, namespace: str) -> None:
    """Wait until a new namespace has got its account."""
    where = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    eventually(f"{namespace} has an account", lambda: kube.request("GET", where)["items"], 30)
