"""However the engine's process ends, the client learns of it and why."""

from __future__ import annotations

import asyncio
import errno
import sys
import tempfile

import pytest
from runtime_builders import make_engine_config
from server_engine import DEADLINE_S

from stoker_runtime import machine
from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.server import engine_process
from stoker_runtime.server.client import EngineClient
from stoker_runtime.server.engine_process import EngineProcess
from stoker_runtime.server.lifecycle import cause_of_death as death


async def cause_of_death(*code: str) -> str:
    """Run a program as the engine and return what the client is told when it is gone."""
    return str((await client_of_the_dead(*code)).dead)


async def client_of_the_dead(*code: str) -> EngineClient:
    client = EngineClient()
    engine = EngineProcess(client, make_engine_config(), (sys.executable, "-c", *code))
    engine.start()
    async with asyncio.timeout(DEADLINE_S):
        await client.is_dead.wait()
    await engine.stop()
    assert engine.has_started.is_set()
    return client


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        pytest.param("raise SystemExit(3)", "ended with status 3", id="status"),
        pytest.param("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV", id="signal"),
        pytest.param("import os; os.kill(os.getpid(), 35)", "ended by signal 35", id="nameless-signal"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "run out of memory", id="kill"),
    ],
)
async def test_the_end_of_the_process_is_explained(code: str, cause: str) -> None:
    assert cause in await cause_of_death(code)


async def test_a_process_that_the_kernel_ends_for_lack_of_memory_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter([1, 2])
    monkeypatch.setattr(machine, "num_oom_kills", lambda: next(counts))
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 12345)

    client = await client_of_the_dead("import os; os.kill(os.getpid(), 9)")

    error = death(client)
    assert isinstance(error, ModelError)
    assert error.reason == "OutOfMemory"
    for text in (str(error), str(client.dead)):
        assert "12345 bytes); raise the memory limit, or lower --kv-cache-memory" in text


async def test_without_a_folder_for_the_socket_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(prefix: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", find_none)

    error = death(await client_of_the_dead("raise SystemExit(0)"))

    assert isinstance(error, ConfigError)
    assert "make /tmp writable, or set TMPDIR" in str(error)


async def test_a_failure_of_ours_is_the_engines_end_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explain(*_: object) -> str:
        raise KeyError("nothing")

    monkeypatch.setattr(EngineProcess, "_explain", explain)

    assert "KeyError('nothing')" in await cause_of_death("raise SystemExit(0)")
    assert "looking after the engine failed" in caplog.text


async def test_a_process_that_even_sigkill_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spared: list[asyncio.subprocess.Process] = []
    kill = asyncio.subprocess.Process.kill
    monkeypatch.setattr(engine_process, "_BURIAL_S", 0.05)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda self: spared.append(self))
    code = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2]); s.close();"
        "time.sleep(1000)"
    )

    cause = await cause_of_death(code)

    kill(spared[0])
    await spared[0].wait()
    assert "does not end" in cause
