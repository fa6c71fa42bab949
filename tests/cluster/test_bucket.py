"""The bucket that scenarios have in the cluster answers like a real S3 server, and asks for keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from s3_builders import BUCKET, KEYS, running_buckets

from scenarios.bucket import Bucket, running_bucket
from stoker_runtime.errors import ModelError
from stoker_runtime.sources import fetch, pieces

FILES = {
    "tiny/config.json": b"{}",
    "tiny/model.safetensors": os.urandom(300_000),
    "tiny/older/model.safetensors": b"old",
    "tiny-2/config.json": b"{}",
    "tiny/a b&ü.txt": b"",
}


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.endswith("_PROXY")]:
        monkeypatch.delenv(name)
    with running_bucket(Bucket(BUCKET, FILES, "id", "secret")) as found:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": found}.items():
            monkeypatch.setenv(name, value)
        yield found


def client(url: str, **keys: str) -> Any:
    path_style = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0})
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=path_style, **keys)


def listed(admin: Any, prefix: str) -> tuple[list[tuple[str, int, str]], list[str], int]:
    found = admin.list_objects_v2(Bucket=BUCKET, Prefix=prefix, Delimiter="/")
    objects = [(one["Key"], one["Size"], one["ETag"]) for one in found.get("Contents", ())]
    folders = [one["Prefix"] for one in found.get("CommonPrefixes", ())]
    return objects, folders, found["KeyCount"]


def code_of(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        call(Bucket=BUCKET, **arguments)
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.mark.parametrize("prefix", ["", "tiny/", "tiny", "none/"])
def test_lists_are_a_real_servers(url: str, prefix: str) -> None:
    with running_buckets() as real:
        real.put(FILES)
        assert listed(client(url), prefix) == listed(real.admin, prefix)


@pytest.mark.parametrize(
    "arguments",
    [
        {"Key": "tiny/none"},
        {"Key": "tiny/config.json", "IfMatch": '"other"'},
        {"Key": "tiny/model.safetensors", "Range": "bytes=300000-"},
    ],
    ids=["no such key", "changed", "out of range"],
)
def test_refusals_are_a_real_servers(url: str, arguments: dict[str, str]) -> None:
    with running_buckets() as real:
        real.put(FILES)
        assert code_of(client(url).get_object, **arguments) == code_of(real.admin.get_object, **arguments)


@pytest.mark.parametrize("span", ["bytes=0-0", "bytes=10-20", "bytes=299990-400000", "bytes=299990-"])
def test_ranges_are_a_real_servers(url: str, span: str) -> None:
    def got(admin: Any) -> tuple[bytes, str, str]:
        found = admin.get_object(Bucket=BUCKET, Key="tiny/model.safetensors", Range=span)
        return found["Body"].read(), found["ContentRange"], found["ETag"]

    with running_buckets() as real:
        real.put(FILES)
        assert got(client(url)) == got(real.admin)


def test_the_runtime_downloads_from_it(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 64 * 1024)
    found = fetch(f"s3://{BUCKET}/tiny", tmp_path)
    assert (found / "config.json").read_bytes() == b"{}"
    assert (found / "model.safetensors").read_bytes() == FILES["tiny/model.safetensors"]


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "other"}, "InvalidAccessKeyId"),
        ({"AWS_SKIP_SIGNATURE": "true"}, "AccessDenied"),
    ],
    ids=["secret", "id", "none"],
)
def test_other_keys_are_refused_with_the_code_that_s3_has_for_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], code: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=code) as refused:
        fetch(f"s3://{BUCKET}/tiny", tmp_path)
    assert refused.value.reason == "ModelAccessDenied"
