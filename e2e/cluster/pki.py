"""The cluster's certificate authority, what it signs, and the static tokens: all the secrets of `up`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trustme

from cluster import render
from cluster.plan import API_SERVICE_ADDRESS, DOMAIN

API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}")


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def write_pair(folder: Path, name: str, leaf: trustme.LeafCert) -> None:
    """Write NAME.crt and NAME.key."""
    (folder / f"{name}.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    write_private(folder / f"{name}.key", leaf.private_key_pem.bytes())


@dataclass(frozen=True)
class Secrets:
    """A folder of credentials and the authority behind it."""

    folder: Path
    ca_pem: bytes
    tokens: dict[render.Identity, str]

    def kubeconfig(self, identity: render.Identity, server: str) -> Path:
        """Write the kubeconfig of one identity and return its path."""
        path = self.folder / f"{identity.key}.kubeconfig"
        text = render.kubeconfig(server, self.folder / "ca.crt", self.tokens[identity])
        write_private(path, text.encode())
        return path


def create(folder: Path, api_addresses: Iterable[str], nodes: dict[str, str]) -> Secrets:
    """Make an authority, the control plane's certificates, one serving certificate a node, and all tokens.

    Args:
        api_addresses: where the API server will be reached, besides its in-cluster names.
        nodes: node name -> address.
    """
    authority = trustme.CA(organization_name="Stoker", organization_unit_name="end-to-end cluster")
    ca_pem = authority.cert_pem.bytes()
    (folder / "ca.crt").write_bytes(ca_pem)
    names = [*api_addresses, API_SERVICE_ADDRESS, "localhost", *API_NAMES]
    write_pair(folder, "apiserver", authority.issue_cert(*dict.fromkeys(names), common_name="kube-apiserver"))
    # A certificate without a name in it would carry an empty, critical extension, which Go refuses.
    client = authority.issue_cert("client", common_name="kube-apiserver", organization_name="system:masters")
    write_pair(folder, "kubelet-client", client)
    write_pair(folder, "service-account", authority.issue_cert("service-accounts"))
    for name, address in nodes.items():
        write_pair(
            folder, f"node-{name}", authority.issue_cert(address, name, common_name=f"system:node:{name}")
        )
    identities = [*render.SYSTEM_IDENTITIES, *(render.node_identity(name) for name in nodes)]
    tokens = {identity: secrets.token_urlsafe(24) for identity in identities}
    write_private(folder / "tokens.csv", render.token_file(tokens).encode())
    (folder / "audit-policy.yaml").write_text(render.audit_policy())
    return Secrets(folder, ca_pem, tokens)
