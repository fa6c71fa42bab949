"""A place in a bucket: how it is written, where its copy lies, and what to know of its environment. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from stoker_runtime.errors import ConfigError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class BucketSource:
    """A folder of a bucket that speaks S3, perhaps one file of it."""

    bucket: str
    prefix: str = ""  # what the keys of the folder begin with, without the last "/"; "" is the whole bucket
    file: str | None = None  # a GGUF file in the folder

    def __str__(self) -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, self.file) if part)

    @property
    def folder(self) -> str:
        """Where copies of it lie, relative to the cache."""
        key = "/".join(part for part in (self.prefix, self.file) if part)
        return f"{self.bucket}/{quote(key, safe='') or '%2F'}"


@dataclass(frozen=True)
class BucketObject:
    """One object below the folder."""

    path: str  # relative to the folder, with "/"
    size: int  # bytes
    etag: str | None  # another one for other contents; None where the server gives none

    @property
    def name(self) -> str:
        """Name of its copy: of this path with these contents."""
        text = f"{self.path}\n{self.etag}\n{self.size}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_bucket(text: str) -> BucketSource:
    """Read `s3://BUCKET[/PREFIX][/FILE.gguf]`.

    Raises:
        ConfigError: it is something else.
    """
    bucket, _, key = text.removeprefix("s3://").partition("/")
    parts = key.rstrip("/").split("/") if key.strip("/") else []
    if not _BUCKET.fullmatch(bucket) or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{text!r}: a folder of a bucket is written s3://BUCKET/FOLDER")
    file = parts.pop() if parts and parts[-1].endswith(".gguf") else None
    return BucketSource(bucket, "/".join(parts), file)


def version_of(objects: Iterable[BucketObject]) -> str:
    """Return a name for these contents, another one as soon as any of them changes."""
    names = "\n".join(sorted(one.name for one in objects))
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """Return the address of the server, None for that of AWS in the region.

    Raises:
        ConfigError: a variable that names it, or one of a key, cannot work.
    """
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name, other in (keys, reversed(keys)):
        if environ.get(name) and not environ.get(other):
            raise ConfigError(f"{name} is set and {other} is not; give both, or neither")
    for name in _ENDPOINTS:
        value = environ.get(name, "")
        if value and not re.match(r"https?://[^/]", value):
            raise ConfigError(f"{name} is {value!r}; use an address that begins with https:// or http://")
        if value:
            return value.rstrip("/")
    return None
