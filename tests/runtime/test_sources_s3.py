"""s3:// sources against a real S3 server, with answers that are refused, cut or changed on the way."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from s3_builders import BUCKET, KEYS, Answer, Buckets, running_buckets

from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.sources import fetch, pieces, resolve, s3
from stoker_runtime.sources.bucket import BucketObject, BucketSource, parse_bucket
from stoker_runtime.sources.pieces import PieceFile

WEIGHTS = os.urandom(300_000)
PIECE = 64 * 1024
MODEL = {
    "llama/config.json": b"{}",
    "llama/model.safetensors": WEIGHTS,
    "llama/pytorch_model.bin": b"pickle",
    "llama/": b"",
    "llama-2/config.json": b"{}",
}


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    for name in [name for name in os.environ if name.startswith("AWS_") or name.endswith("_PROXY")]:
        monkeypatch.delenv(name)
    with running_buckets() as found:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        found.put(MODEL)
        yield found


def had(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def had_soon(source: str, cache: Path) -> Path:
    """Download without waiting between attempts."""
    return s3.download(parse_bucket(source), cache, environ=os.environ, sleep=lambda seconds: None)


def test_a_folder_is_fetched_without_what_nobody_loads(buckets: Buckets, tmp_path: Path) -> None:
    found = fetch("s3://models/llama", tmp_path)
    assert had(found) == {"config.json": b"{}", "model.safetensors": WEIGHTS}
    assert len(buckets.downloads("model.safetensors")) == 5
    assert buckets.downloads("pytorch_model.bin") == []


def test_the_engine_finds_it_without_network_or_keys(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetch("s3://models/llama/", tmp_path)
    num_requests = len(buckets.requests)
    script = (
        "import sys; from stoker_runtime import sources;"
        "print(sources.resolve('s3://models/llama')); assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": "runtime", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    resolved = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(resolved.stdout.strip()) == found
    assert len(buckets.requests) == num_requests
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"is not in .* and HF_HUB_OFFLINE"):
        resolve("s3://models/other", cache_dir=tmp_path / "hub")


def test_a_gguf_file_is_fetched_with_all_its_parts(buckets: Buckets, tmp_path: Path) -> None:
    parts = {f"q/m-0000{n}-of-00002.gguf": os.urandom(10) for n in (1, 2)}
    buckets.put({**parts, "q/other.gguf": b"x"})
    found = fetch("s3://models/q/m-00001-of-00002.gguf", tmp_path)
    assert found.name == "m-00001-of-00002.gguf"
    assert had(found.parent) == {path.removeprefix("q/"): body for path, body in parts.items()}


def test_a_whole_bucket_may_be_a_model(buckets: Buckets, tmp_path: Path) -> None:
    buckets.put({"model.safetensors": b"w", "config.json": b"{}"})
    assert set(had(fetch("s3://models", tmp_path))) == {"model.safetensors", "config.json"}


def test_what_is_there_is_not_fetched_again_and_what_changed_is(buckets: Buckets, tmp_path: Path) -> None:
    before = fetch("s3://models/llama", tmp_path)
    num_requests = len(buckets.requests)
    assert fetch("s3://models/llama", tmp_path) == before
    assert len(buckets.requests) == num_requests + 1
    buckets.put({"llama/config.json": b'{"a": 1}'})
    after = fetch("s3://models/llama", tmp_path)
    assert had(after)["config.json"] == b'{"a": 1}'
    assert had(before)["config.json"] == b"{}"
    assert len(buckets.downloads("model.safetensors")) == 5


def test_a_killed_download_goes_on_with_the_pieces_that_are_missing(buckets: Buckets, tmp_path: Path) -> None:
    (one,) = [
        entry
        for entry in buckets.admin.list_objects_v2(Bucket=BUCKET)["Contents"]
        if entry["Size"] == 300_000
    ]
    name = BucketObject("model.safetensors", 300_000, one["ETag"]).name
    blobs = tmp_path / "s3/models/llama/blobs"
    blobs.mkdir(parents=True)
    left = PieceFile(blobs / name, 300_000)
    left.begin()
    for start in (0, 2 * PIECE):
        left.write(start, WEIGHTS[start : start + PIECE])
    with (blobs / f"{name}.pieces").open("a") as notes:
        notes.write(f"{3 * PIECE}")  # a line that was cut off
    found = fetch("s3://models/llama", tmp_path)
    assert had(found)["model.safetensors"] == WEIGHTS
    spans = sorted(str(span) for span in buckets.downloads("model.safetensors"))
    assert spans == ["bytes=196608-262143", "bytes=262144-299999", "bytes=65536-131071"]
    assert [path.name for path in blobs.iterdir() if path.suffix] == []


def test_a_body_that_is_cut_is_asked_for_again(buckets: Buckets, tmp_path: Path) -> None:
    buckets.cut_after["model.safetensors"] = [1000, 0, 5]
    found = had_soon("s3://models/llama", tmp_path)
    assert had(found)["model.safetensors"] == WEIGHTS


def test_a_body_that_is_always_cut_is_no_model(buckets: Buckets, tmp_path: Path) -> None:
    buckets.cut_after["model.safetensors"] = [1000] * 1000
    with pytest.raises(ModelError, match="download failed") as failed:
        had_soon("s3://models/llama", tmp_path)
    assert failed.value.reason == "DownloadFailed"
    assert not (tmp_path / "models/llama/ref").exists()


def test_an_object_that_changes_meanwhile_is_never_mixed(buckets: Buckets, tmp_path: Path) -> None:
    other = os.urandom(300_000)
    changed = threading.Event()

    def change(name: str) -> None:
        if name == "model.safetensors" and not changed.is_set():
            changed.set()
            buckets.put({"llama/model.safetensors": other})

    buckets.on_get = change
    assert had(had_soon("s3://models/llama", tmp_path))["model.safetensors"] == other


def test_an_object_that_is_deleted_meanwhile_is_looked_for_again(buckets: Buckets, tmp_path: Path) -> None:
    buckets.put({"llama/generation_config.json": b"{}"})
    buckets.on_get = lambda name: buckets.admin.delete_object(
        Bucket=BUCKET, Key="llama/generation_config.json"
    )
    assert set(had(had_soon("s3://models/llama", tmp_path))) == {"config.json", "model.safetensors"}


def test_a_bucket_that_never_rests_is_no_place_for_a_model(buckets: Buckets, tmp_path: Path) -> None:
    buckets.on_get = lambda name: buckets.put({"llama/model.safetensors": os.urandom(200_000)})
    with pytest.raises(ModelError, match="changed 3 times during its download") as failed:
        had_soon("s3://models/llama", tmp_path)
    assert failed.value.reason == "DownloadFailed"


def test_a_server_that_is_away_leaves_the_last_download(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = had_soon("s3://models/llama", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    assert had_soon("s3://models/llama", tmp_path) == found


@pytest.mark.parametrize(
    ("source", "answer", "reason", "said"),
    [
        pytest.param("s3://no-bucket/a", None, "ModelNotFound", "there is no bucket no-bucket", id="bucket"),
        pytest.param(
            "s3://models/no", None, "ModelNotFound", "in no bucket models has nothing: correct", id="folder"
        ),
        pytest.param(
            "s3://models", None, "ModelNotFound", "only the folders llama, llama-2: correct", id="deeper"
        ),
        pytest.param(
            "s3://models/llama",
            Answer(404, ""),
            "ModelNotFound",
            "there is no bucket models, or this is no server that speaks S3",
            id="no-server",
        ),
        pytest.param("s3://models/llama/a.gguf", None, "ModelNotFound", "has no file 'a.gguf'", id="file"),
        pytest.param("s3://models/llama-2", None, "UnsupportedModel", "name another folder", id="no-weights"),
        pytest.param(
            "s3://models/llama",
            Answer(403, "AccessDenied", "User: ci is not authorized"),
            "ModelAccessDenied",
            r"AccessDenied\) \(User: ci is not authorized\); it takes s3:ListBucket.*spec.model.secretName",
            id="rights",
        ),
        pytest.param(
            "s3://models/llama",
            Answer(403, "InvalidAccessKeyId"),
            "ModelAccessDenied",
            "refused .InvalidAccessKeyId",
            id="key",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    buckets: Buckets, tmp_path: Path, source: str, answer: Answer | None, reason: str, said: str
) -> None:
    buckets.answers += [answer] if answer else []
    with pytest.raises(ModelError, match=said) as failed:
        had_soon(source, tmp_path)
    assert failed.value.reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'"),
        Answer(301, "PermanentRedirect", "The bucket must be addressed using the specified endpoint"),
    ],
    ids=lambda answer: answer.code,
)
def test_another_region_is_a_setting_to_correct(buckets: Buckets, tmp_path: Path, answer: Answer) -> None:
    buckets.answers += [answer] * 10
    with pytest.raises(ConfigError, match="in another region than us-east-1, the default: set AWS_REGION"):
        had_soon("s3://models/llama", tmp_path)


def test_no_network_names_the_endpoint(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    with pytest.raises(
        ModelError, match=r"s3://models/llama at http://localhost:9: download failed"
    ) as failed:
        had_soon("s3://models/llama", tmp_path)
    assert failed.value.reason == "DownloadFailed"


def test_a_disk_without_room_is_told_before_the_download(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"needs 0\.29 MiB more") as failed:
        had_soon("s3://models/llama", tmp_path)
    assert failed.value.reason == "DiskFull"
    assert buckets.downloads("model.safetensors") == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL", "minio:9000", "AWS_ENDPOINT_URL is 'minio:9000'; use an address"),
        ("AWS_SECRET_ACCESS_KEY", "", "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
    ],
)
def test_a_variable_that_cannot_work_is_named(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        had_soon("s3://models/llama", tmp_path)
    assert buckets.requests == []


def test_a_public_bucket_needs_no_keys(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(ModelError, match="access was refused"):
        had_soon("s3://models/llama", tmp_path)
    for key in MODEL:
        buckets.admin.put_object_acl(Bucket=BUCKET, Key=key, ACL="public-read")
    assert set(had(had_soon("s3://models/llama", tmp_path))) == {"config.json", "model.safetensors"}


def test_without_any_keys_it_says_where_they_go(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://localhost:9")
    with pytest.raises(ModelError, match="AWS_SKIP_SIGNATURE=true") as failed:
        had_soon("s3://models/llama", tmp_path)
    assert failed.value.reason == "ModelAccessDenied"


def trusted_by(path: Path) -> ssl.SSLContext:
    """Return a server's certificate, and write whom to trust for it beside another authority."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    path.write_bytes(trustme.CA().cert_pem.bytes() + authority.cert_pem.bytes())
    return context


def test_an_authority_of_ones_own_is_trusted_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.crt"
    with running_buckets(trusted_by(bundle)) as buckets:
        buckets.put(MODEL)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": buckets.url}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ModelError, match=r"certificate is not trusted .*SSL_CERT_FILE") as failed:
            had_soon("s3://models/llama", tmp_path / "a")
        assert failed.value.reason == "DownloadFailed"
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        assert had(had_soon("s3://models/llama", tmp_path / "b"))["model.safetensors"] == WEIGHTS


def test_a_role_of_the_service_account_gives_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What EKS puts into a pod: a token of the account, which a service changes for keys."""
    bundle, token = tmp_path / "ca.crt", tmp_path / "token"
    token.write_text("eyJhbGciOiJub25lIn0.e30.")
    with running_buckets(trusted_by(bundle)) as buckets:
        buckets.put(MODEL)
        role = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/m", "AWS_WEB_IDENTITY_TOKEN_FILE": str(token)}
        urls = {"AWS_ENDPOINT_URL": buckets.url, "AWS_ENDPOINT_URL_STS": buckets.url}
        for name, value in {**role, **urls, "SSL_CERT_FILE": str(bundle)}.items():
            monkeypatch.setenv(name, value)
        assert had(had_soon("s3://models/llama", tmp_path / "a"))["model.safetensors"] == WEIGHTS
        assert "POST" in {method for method, _, _ in buckets.requests}
        token.unlink()
        with pytest.raises(ModelError, match=r"no credentials to be had here .*token file") as failed:
            had_soon("s3://models/llama", tmp_path / "b")
        assert failed.value.reason == "ModelAccessDenied"


class _Agent(BaseHTTPRequestHandler):
    """Gives keys to who shows the token, as EKS' Pod Identity does."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def do_GET(self) -> None:
        keys = {"AccessKeyId": "id", "SecretAccessKey": "secret", "Token": "t"}
        body = json.dumps({**keys, "Expiration": "2100-01-01T00:00:00Z"}).encode()
        self.send_response(200 if self.headers.get("Authorization") == "pod's token" else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_an_agent_on_the_node_gives_keys(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("pod's token")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Agent) as agent:
        thread = threading.Thread(target=agent.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{agent.server_port}/v1/credentials"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        found = had_soon("s3://models/llama", tmp_path)
        agent.shutdown()
        thread.join()
    assert had(found)["model.safetensors"] == WEIGHTS


def test_what_other_downloads_left_is_removed_after_a_while(buckets: Buckets, tmp_path: Path) -> None:
    blobs = tmp_path / "models/llama/blobs"
    blobs.mkdir(parents=True)
    for name in ("old.partial", "old.pieces", "new.partial"):
        (blobs / name).write_text("")
    os.utime(blobs / "old.partial", (0, 0))
    had_soon("s3://models/llama", tmp_path)
    assert [path.name for path in blobs.iterdir() if path.suffix] == ["new.partial"]


def test_a_failure_says_the_same_each_time(
    buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    said = []
    for _ in range(2):
        with pytest.raises(ModelError) as failed:
            had_soon("s3://models/llama", tmp_path)
        said.append(str(failed.value))
    assert said[0] == said[1]
    assert said[0].endswith(": Connection refused")


def test_the_command_leaves_reason_and_message(buckets: Buckets, tmp_path: Path) -> None:
    left = tmp_path / "termination-log"
    command = [sys.executable, "-m", "stoker_runtime", "fetch"]
    done = subprocess.run(
        [*command, "--source=s3://no-bucket/a", f"--destination={tmp_path}"],
        env={**os.environ, "PYTHONPATH": "runtime", "STOKER_TERMINATION_LOG": str(left)},
        check=False,
    )
    assert done.returncode == 3
    told = json.loads(left.read_text())
    assert told["reason"] == "ModelNotFound"
    assert "no-bucket" in told["message"]


def test_several_at_once_share_one_download(buckets: Buckets, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch("s3://models/llama", tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert had(found[0])["model.safetensors"] == WEIGHTS
    assert len(buckets.downloads("model.safetensors")) == 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("s3://models", BucketSource("models")),
        ("s3://models/", BucketSource("models")),
        ("s3://models/a/b/", BucketSource("models", "a/b")),
        ("s3://models/a/b.gguf", BucketSource("models", "a", "b.gguf")),
        ("s3://models/b.gguf", BucketSource("models", "", "b.gguf")),
    ],
)
def test_how_a_source_is_read(text: str, wanted: BucketSource) -> None:
    assert parse_bucket(text) == wanted
    assert parse_bucket(str(wanted)) == wanted


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "s3://No/a", "s3://models//a", "s3://models/../a"])
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is written s3://BUCKET/FOLDER"):
        parse_bucket(text)


def test_a_bucket_has_no_revisions() -> None:
    with pytest.raises(ConfigError, match="where nothing has revisions"):
        resolve("s3://models/a", "v1")
