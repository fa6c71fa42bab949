"""A bucket server: moto's, which speaks S3, behind a proxy that counts, refuses and cuts answers."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "models"
# Whom the server lets in.
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}


@dataclass(frozen=True)
class Answer:
    """What the proxy says by itself."""

    status: int
    code: str
    message: str = "no"

    @property
    def body(self) -> bytes:
        return f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


@dataclass
class Buckets:
    """The running server.

    Args:
        url: of the proxy.
        admin: boto3's client, past the proxy.
        answers: what the next requests are told in place of an answer.
        cut_after: key -> bytes of the body after which the connection ends, each time.
        on_get: called with the key before each download of an object.
        requests: method, path and Range of each.
    """

    url: str
    admin: Any
    answers: list[Answer] = field(default_factory=list)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    on_get: Any = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def put(self, files: dict[str, bytes]) -> None:
        """Store objects."""
        for key, body in files.items():
            self.admin.put_object(Bucket=BUCKET, Key=key, Body=body)

    def downloads(self, name: str) -> list[str | None]:
        """Return the Range header of each GET of an object."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    buckets: Buckets
    behind: tuple[str, int]

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        buckets, name = self.buckets, self.path.partition("?")[0].rsplit("/", 1)[-1]
        buckets.requests.append((self.command, self.path, self.headers.get("Range")))
        if "?" not in self.path and buckets.on_get is not None:
            buckets.on_get(name)
        if buckets.answers:
            answer = buckets.answers.pop(0)
            self._answer(answer.status, {"Content-Type": "application/xml"}, answer.body)
            return
        connection = HTTPConnection(*self.behind, timeout=30)
        if self.command == "POST":
            # Who asks for keys signs nothing, and puts into the address what the server expects in the body.
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/", self.path.partition("?")[2], form)
        else:
            connection.request("GET", self.path, headers=dict(self.headers.items()))
        reply = connection.getresponse()
        body = reply.read()
        kept = ("etag", "last-modified", "content-range", "content-type")
        headers = {key: value for key, value in reply.getheaders() if key.lower() in kept}
        cuts = buckets.cut_after.get(name, [])
        self._answer(reply.status, headers, body, cuts.pop(0) if cuts else None)
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])
        self.wfile.flush()
        self.close_connection = sent is not None


@contextmanager
def running_buckets(tls: ssl.SSLContext | None = None) -> Iterator[Buckets]:
    """Serve an empty bucket until the block ends.

    Args:
        tls: the proxy's certificate; None serves plain HTTP.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # What it stores is one for all servers of a process.
    reset = HTTPConnection(host, port, timeout=30)
    reset.request("POST", "/moto-api/reset")
    assert reset.getresponse().status == 200
    reset.close()
    admin = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )
    admin.create_bucket(Bucket=BUCKET)
    handler = type("Handler", (_Handler,), {"behind": (host, port)})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    if tls is not None:
        proxy.socket = tls.wrap_socket(proxy.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    buckets = Buckets(f"{scheme}://localhost:{proxy.server_port}", admin)
    handler.buckets = buckets  # type: ignore[attr-defined]
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield buckets
    finally:
        proxy.shutdown()
        thread.join(timeout=5)
        proxy.server_close()
        admin.close()
        server.stop()
