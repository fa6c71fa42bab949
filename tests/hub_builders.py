"""A stand-in model hub: repositories with revisions, tokens, gates and planned faults.

Nothing but the standard library, because scenarios run this file inside a pod as well.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Repo:
    """One repository: each revision name leads to a commit, each commit to files."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None  # needed for everything
    gated: bool = False  # listing is open, files answer 403


@dataclass
class Faults:
    """What goes wrong, each a number of times."""

    cut_after: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes sent before each cut
    stall_after: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes sent before silence
    api_status: list[int] = field(default_factory=list)  # answers of the next API calls
    claimed_size: dict[str, int] = field(default_factory=dict)  # file -> size the listing claims


@dataclass
class Hub:
    """The running stand-in."""

    url: str
    repos: dict[str, Repo]
    faults: Faults
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    stalled: threading.Event = field(
        default_factory=threading.Event
    )  # a download has been sent its last byte
    closing: threading.Event = field(default_factory=threading.Event)

    def downloads(self, file: str) -> list[str | None]:
        """Return the Range header of each GET of a file."""
        return [
            range_ for method, path, range_ in self.requests if method == "GET" and path.endswith(f"/{file}")
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/").split("/"))
        else:
            owner, name, _resolve, revision, *file = path.strip("/").split("/")
            self._file(f"{owner}/{name}", revision, "/".join(file))

    def _api(self, parts: list[str]) -> None:
        if self.hub.faults.api_status:
            self._answer(self.hub.faults.api_status.pop(0), b"{}")
            return
        repo_id = "/".join(parts[:2])
        repo = self._repo(repo_id)
        if repo is None:
            return
        revision = "/".join(parts[3:]) if len(parts) > 3 else "main"
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        files = repo.commits[commit]
        if parts[2] == "tree":
            self._json([self._tree_entry(path, data) for path, data in files.items()])
            return
        siblings = [{"rfilename": path, "size": self._size(path, data)} for path, data in files.items()]
        self._json({"id": repo_id, "sha": commit, "siblings": siblings, "private": False})

    def _tree_entry(self, path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": self._size(path, data), "oid": _sha1(data)}

    def _size(self, path: str, data: bytes) -> int:
        return self.hub.faults.claimed_size.get(path, len(data))

    def _file(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        if repo.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        data = repo.commits[repo.refs.get(revision, revision)][path]
        headers = {"ETag": f'"{_sha1(data)}"', "X-Repo-Commit": repo.refs.get(revision, revision)}
        start = 0
        if range_ := self.headers.get("Range"):
            start = int(range_.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        stalls = self.hub.faults.stall_after.get(path, [])
        if self.command == "GET" and stalls:
            self._answer(200, data, headers, sent=stalls.pop(0))
            self.hub.stalled.set()
            self.hub.closing.wait(timeout=60)
            return
        cuts = self.hub.faults.cut_after.get(path, [])
        if self.command == "GET" and cuts:
            self._answer(206 if range_ else 200, data[start:], headers, sent=cuts.pop(0))
            return
        self._answer(206 if range_ else 200, data[start:], headers)

    def _repo(self, repo_id: str) -> Repo | None:
        """Return the repository, or answer as the public hub does: 401 for strangers, 404 for the known."""
        repo = self.hub.repos.get(repo_id)
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is not None and repo.token in (None, sent):
            return repo
        status = 404 if repo is None and sent else 401
        self._answer(status, b"{}", {"X-Error-Code": "RepoNotFound"})
        return None

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def running_hub(
    repos: dict[str, Repo], address: tuple[str, int] = ("127.0.0.1", 0), tls: ssl.SSLContext | None = None
) -> Iterator[Hub]:
    """Serve repositories until the block ends, on a free loopback port unless an address is given.

    Args:
        repos: by name.
        address: where to listen.
        tls: its certificate; None serves plain HTTP.
    """
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(address, handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    hub = Hub(url=f"{scheme}://127.0.0.1:{server.server_port}", repos=repos, faults=Faults())
    handler.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join(timeout=5)
        server.server_close()
