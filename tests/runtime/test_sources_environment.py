"""A variable that keeps the hub out of reach is named, with its value and what it should be."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hub_builders import COMMIT, Hub, Repo, running_hub

from stoker_runtime.errors import ConfigError
from stoker_runtime.sources import fetch, resolve
from stoker_runtime.sources.environment import check_environment

# One attempt instead of five: what is said does not depend on how often.
_SCRIPT = """
import sys, pathlib
from stoker_runtime.errors import StokerError
from stoker_runtime import sources
from stoker_runtime.sources import retry
retry.ATTEMPTS = 1
try:
    print(sources.fetch("hf://org/name", pathlib.Path(sys.argv[1])))
except StokerError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        pytest.param("SSL_CERT_FILE", "/no/ca.pem", "'/no/ca.pem', and there is no such file", id="no-file"),
        pytest.param("SSL_CERT_FILE", __file__, "which is no file of certificates", id="no-certificates"),
        pytest.param(
            "HTTPS_PROXY", "http://127.0.0.1:9", "through the proxy that HTTPS_PROXY names", id="proxy"
        ),
        pytest.param("ALL_PROXY", "socks5://127.0.0.1:9", "ALL_PROXY names a SOCKS proxy", id="socks"),
        pytest.param("HF_ENDPOINT", "hub.local", "HF_ENDPOINT is 'hub.local'; use an address", id="endpoint"),
    ],
)
def test_the_variable_at_fault_is_named(name: str, value: str, said: str, tmp_path: Path) -> None:
    kept = {key: text for key, text in os.environ.items() if "proxy" not in key.lower() and key[:3] != "HF_"}
    kept.pop("SSL_CERT_FILE", None)
    # An address on this machine where nobody listens: no case may depend on a network.
    environment = {"HF_ENDPOINT": "https://127.0.0.1:9", **kept, "PYTHONPATH": "runtime", name: value}
    if name.endswith("PROXY"):
        environment |= {"HF_ENDPOINT": "https://hub.invalid", "NO_PROXY": ""}
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in told.stdout


@pytest.fixture
def private_hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub whose certificate no public authority has signed; authority.pem holds the one that has."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    with running_hub({"org/name": Repo({COMMIT: files})}, tls=tls) as hub:
        yield hub


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_hub_of_a_private_authority_needs_ssl_cert_file(
    is_trusted: bool, private_hub: Hub, tmp_path: Path
) -> None:
    kept = {key: text for key, text in os.environ.items() if "proxy" not in key.lower() and key[:3] != "HF_"}
    kept.pop("SSL_CERT_FILE", None)
    certificates = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")} if is_trusted else {}
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path / "cache")],
        env={**kept, **certificates, "HF_ENDPOINT": private_hub.url, "PYTHONPATH": "runtime"},
        capture_output=True,
        text=True,
        check=True,
    )
    if is_trusted:
        assert (Path(told.stdout.strip()) / "model.safetensors").read_bytes() == b"weights"
    else:
        assert "the hub's certificate is not trusted" in told.stdout
        assert "set SSL_CERT_FILE to its authority's" in told.stdout


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_time_that_is_no_number_is_refused_before_the_library_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1m")
    with pytest.raises(ConfigError, match=f"{name} is '1m'; use a whole number"):
        fetch("hf://org/name", tmp_path)
    with pytest.raises(ConfigError, match=name):
        resolve("hf://org/name")


def test_whole_seconds_are_fine() -> None:
    check_environment({"HF_HUB_DOWNLOAD_TIMEOUT": "30", "HF_HUB_ETAG_TIMEOUT": ""})
    with pytest.raises(ConfigError, match="HF_HUB_ETAG_TIMEOUT"):
        check_environment({"HF_HUB_ETAG_TIMEOUT": "-1"})
