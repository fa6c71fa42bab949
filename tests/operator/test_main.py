"""The command as a process of its own, against a fake API server over HTTP."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from click.testing import CliRunner
from fakeapi.client import everything, get, put
from fakeapi.core import FakeApi
from fakeapi.server import FakeServer

from stoker_operator import config
from stoker_operator.__main__ import main

MODEL = {
    "metadata": {"name": "smol", "namespace": "default"},
    "spec": {"model": {"source": "oci://registry.example/smol:1"}, "accelerator": {"perPod": 0}},
}


class Process:
    """The running operator."""

    def __init__(self, process: asyncio.subprocess.Process, metrics_port: int, health_port: int) -> None:
        self.process = process
        self.metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self.readyz = f"http://127.0.0.1:{metrics_port}/readyz"
        self.healthz = f"http://127.0.0.1:{health_port}/healthz"

    async def stop(self) -> tuple[int, list[dict[str, object]]]:
        """SIGTERM; returns the exit status and the log."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, log = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in log.splitlines()]


@asynccontextmanager
async def operator_running(
    tmp_path: Path, url: str, ports: Callable[[], int], *args: str
) -> AsyncIterator[Process]:
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    metrics_port, health_port = ports(), ports()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stoker_operator", "run", "--host=127.0.0.1"),
        *(
            f"--health-port={health_port}",
            f"--metrics-port={metrics_port}",
            "--runtime-image=runtime:test",
            *args,
        ),
        env={**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, metrics_port, health_port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def poll(condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    """Wait for a condition of this very process's objects."""
    loop = asyncio.get_running_loop()
    ends_at, tick = loop.time() + deadline_s, asyncio.Event()
    while not condition():
        assert loop.time() < ends_at, f"not true within {deadline_s} s"
        loop.call_later(0.05, tick.set)
        await tick.wait()
        tick.clear()


async def fetch(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_reconciles_reports_and_ends_on_sigterm(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    api = FakeApi()
    server = FakeServer(api, token="secret")
    async with server.running(), operator_running(tmp_path, server.url, unused_tcp_port_factory) as running:
        put(api, "modeldeployments", MODEL)
        await poll(
            lambda: everything(api, "pods") and (get(api, "modeldeployments", "smol") or {}).get("status")
        )
        await poll(lambda: len(everything(api, "events")) > 0)
        assert await fetch(running.readyz) == (200, '{"waiting_for": []}')
        code, health = await fetch(running.healthz)
        assert (code, json.loads(health)["waiting_for"]) == (200, [])
        _, metrics = await fetch(running.metrics)
        assert 'stoker_operator_reconcile_total{result="ok"}' in metrics
        assert 'stoker_operator_api_requests_total{code="201",resource="pods",verb="post"} 1.0' in metrics
        status, log = await running.stop()
    assert status == 0, log
    assert any(str(line["message"]).startswith("create pod smol-") for line in log)
    model = get(api, "modeldeployments", "smol")
    assert model is not None
    assert not {"annotations", "finalizers"} & set(model["metadata"])


async def test_an_unreachable_api_server_is_waited_for(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port_factory()}"
    async with operator_running(tmp_path, url, unused_tcp_port_factory) as running:
        assert running.process.stderr is not None
        async with asyncio.timeout(60):
            while True:
                line = json.loads(await running.process.stderr.readline())
                if line["message"].startswith("watch failed"):
                    break
        code, waiting = await fetch(running.readyz)
        assert code == 503
        assert "modeldeployments" in json.loads(waiting)["waiting_for"]
        status, _ = await running.stop()
    assert status == 0


async def test_without_credentials_it_ends_at_once(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stoker_operator", "run", "--runtime-image=runtime:test"),
        env=env | {"HOME": str(tmp_path)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, log = await process.communicate()
    assert process.returncode == 1
    assert "no Kubernetes credentials" in log.decode()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "STOKER_RUNTIME_IMAGE is not set"),
        (["run", "--runtime-image=x", "-n", "a", "-A"], "exclude each other"),
        (["run", "--runtime-image=x", "--log-level=loud"], "STOKER_LOG_LEVEL"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STOKER_RUNTIME_IMAGE", raising=False)
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert message in result.output


def test_help_names_every_setting() -> None:
    text = "".join(CliRunner().invoke(main, ["run", "--help"]).output.split())
    source = Path(config.__file__).read_text()
    names = set(re.findall(r'"(STOKER_[A-Z_]+)"', source))
    assert len(names) >= 10
    assert {name for name in names if name not in text} == set()
