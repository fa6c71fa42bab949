import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import kopf
import pytest
import yaml
from fakeapi.client import delete, get, put
from fakeapi.core import FakeApi
from fakeapi.server import FakeServer

from stoker_operator import handlers

MODEL = {"metadata": {"name": "m", "namespace": "ns"}, "spec": {"replicas": 1}}


def write_kubeconfig(folder: Path, url: str, token: str = "secret") -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@asynccontextmanager
async def kopf_running(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    api: FakeApi,
) -> AsyncIterator[tuple[asyncio.Queue[tuple[str, str]], asyncio.Event]]:
    """The shell against a fake API server, with a queue that shows the keys it adds."""
    keys: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    stopped = asyncio.Event()
    server = FakeServer(api, token="secret")
    async with server.running():
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, server.url)))
        registry = handlers.registry(lambda key, _: keys.put_nowait(key), stopped.set)
        task = asyncio.ensure_future(handlers.run(registry, (), asyncio.Event()))
        try:
            yield keys, stopped
        finally:
            task.cancel()
            await asyncio.wait([task])


async def next_key(keys: asyncio.Queue[tuple[str, str]]) -> tuple[str, str]:
    async with asyncio.timeout(10):
        return await keys.get()


async def test_every_event_is_a_key_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi()
    put(api, "modeldeployments", MODEL)
    async with kopf_running(tmp_path, monkeypatch, api) as (keys, _):
        assert await next_key(keys) == ("ns", "m")
        put(api, "modeldeployments", {**MODEL, "spec": {"replicas": 2}})
        assert await next_key(keys) == ("ns", "m")
        delete(api, "modeldeployments", "m", "ns")
        assert await next_key(keys) == ("ns", "m")
    assert api.writes == []


async def test_the_model_gets_neither_annotation_nor_finalizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi()
    before = put(api, "modeldeployments", MODEL)
    async with kopf_running(tmp_path, monkeypatch, api) as (keys, _):
        await next_key(keys)
    assert get(api, "modeldeployments", "m", "ns") == before
    assert not {"annotations", "finalizers"} & set(before["metadata"])


def test_credentials_come_from_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, "http://127.0.0.1:1")))
    found = handlers.login()
    assert (found.server, dict(found.headers)) == ("http://127.0.0.1:1", {"Authorization": "Bearer secret"})
    assert found.tls is None


def test_tls_is_set_up_for_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, "https://127.0.0.1:1")))
    assert handlers.login().tls is not None


def test_no_credentials_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(kopf.LoginError, match="no Kubernetes credentials"):
        handlers.login()


def test_kopf_retries_for_ever_with_bounded_pauses() -> None:
    assert list(islice(handlers.EndlessBackoff(), 7)) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_kopf_posts_no_events_and_scans_nothing() -> None:
    found = handlers.settings()
    assert (found.posting.enabled, found.scanning.disabled, found.peering.standalone) == (False, True, True)
