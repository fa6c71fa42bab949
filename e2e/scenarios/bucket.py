"""Serves the files of a folder out of a bucket, as S3 does; runs inside a pod, with nothing but Python.

python3 bucket.py FOLDER BUCKET PREFIX ID SECRET PORT

It answers what a download asks for: the list of a folder, and objects or ranges of them on condition of their
ETag. Signatures (version 4) are checked, so that keys which never reached the client cannot pass unseen.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

EMPTY = hashlib.sha256(b"").hexdigest()
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<id>[^/]+)/(?P<scope>[^,]+), ?"
    r"SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Bucket:
    """What is served.

    Attributes:
        name: of the bucket.
        objects: contents by key.
        access_key_id: of the one who may read it.
        secret: the key to that.
    """

    name: str
    objects: Mapping[str, bytes]
    access_key_id: str
    secret: str


class Refusal(Exception):
    """An answer that is an error, with S3's code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        try:
            _check_signature(self.bucket, self.path, dict(self.headers.items()))
            self._serve()
        except Refusal as refusal:
            body = f"<Error><Code>{refusal.code}</Code><Message>{refusal.code}</Message></Error>".encode()
            self._answer(refusal.status, body, {"Content-Type": "application/xml"})

    def _serve(self) -> None:
        url = urlsplit(self.path)
        name, _, key = unquote(url.path).lstrip("/").partition("/")
        if name != self.bucket.name:
            raise Refusal(404, "NoSuchBucket")
        if not key:
            query = dict(parse_qsl(url.query))
            listed = listing(self.bucket, query.get("prefix", ""), query.get("delimiter", ""))
            self._answer(200, listed.encode(), {"Content-Type": "application/xml"})
            return
        data = self.bucket.objects.get(key)
        if data is None:
            raise Refusal(404, "NoSuchKey")
        if self.headers.get("If-Match", etag(data)) != etag(data):
            raise Refusal(412, "PreconditionFailed")
        self._object(data)

    def _object(self, data: bytes) -> None:
        headers = {"ETag": etag(data), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._answer(200, data, headers)
            return
        start, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        if start > last:
            raise Refusal(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
        self._answer(206, data[start : last + 1], headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def etag(data: bytes) -> str:
    """What S3 calls an object that came in one part."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def listing(bucket: Bucket, prefix: str, delimiter: str) -> str:
    """What is below a prefix, and with a delimiter no deeper than the next one, as ListObjectsV2 says it."""
    rest = {key: key.removeprefix(prefix) for key in sorted(bucket.objects) if key.startswith(prefix)}
    deeper = {key for key, name in rest.items() if delimiter and delimiter in name}
    objects = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{escape(etag(bucket.objects[key]))}</ETag><Size>{len(bucket.objects[key])}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key in rest
        if key not in deeper
    )
    folders = {f"{prefix}{rest[key].partition(delimiter)[0]}{delimiter}" for key in deeper}
    prefixes = "".join(
        f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket.name}</Name><Prefix>{escape(prefix)}</Prefix><Delimiter>{escape(delimiter)}</Delimiter>"
        f"<KeyCount>{len(rest) - len(deeper) + len(folders)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{objects}{prefixes}</ListBucketResult>"
    )


def _check_signature(bucket: Bucket, path: str, headers: Mapping[str, str]) -> None:
    """Refuse a GET that was not signed with the bucket's keys."""
    lower = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    found = _AUTHORIZATION.fullmatch(lower.get("authorization", ""))
    if found is None:
        raise Refusal(403, "AccessDenied")
    if found["id"] != bucket.access_key_id:
        raise Refusal(403, "InvalidAccessKeyId")
    url = urlsplit(path)
    pairs = sorted((_quoted(k), _quoted(v)) for k, v in parse_qsl(url.query, keep_blank_values=True))
    names = found["headers"].split(";")
    canonical = "\n".join(
        [
            "GET",
            url.path,
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{lower.get(name, '')}" for name in names),
            "",
            found["headers"],
            lower.get("x-amz-content-sha256", EMPTY),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", lower.get("x-amz-date", ""), found["scope"], digest])
    key = f"AWS4{bucket.secret}".encode()
    for part in (*found["scope"].split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(key.hex(), found["signature"]):
        raise Refusal(403, "SignatureDoesNotMatch")


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")


@contextmanager
def running_bucket(bucket: Bucket, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """Serve a bucket until the block ends, and yield where."""
    server = ThreadingHTTPServer(address, type("Handler", (_Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://{address[0]}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(timeout=5)
        server.server_close()


def main(folder: str, name: str, prefix: str, access_key_id: str, secret: str, port: str) -> None:
    files = {f"{prefix}/{path.name}": path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    with running_bucket(Bucket(name, files, access_key_id, secret), ("0.0.0.0", int(port))):
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main(*sys.argv[1:])
