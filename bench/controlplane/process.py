"""The operator as a process of its own, and what the system says of it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from operator_world import CONFIG

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600.0


class Operator:
    """A process that was started just now, and asks for the Lease when it has filled its caches."""

    def __init__(self, process: asyncio.subprocess.Process, health_port: int) -> None:
        self.process = process
        self.started_at_s = asyncio.get_running_loop().time()
        self._health_url = f"http://127.0.0.1:{health_port}/healthz"

    @property
    def resident_mib(self) -> float:
        """Memory now."""
        return self._memory_mib("VmRSS")

    @property
    def most_resident_mib(self) -> float:
        """Memory when it was most."""
        return self._memory_mib("VmHWM")

    @property
    def cpu_s(self) -> float:
        """CPU time so far: unlike latency, it means the same on a busy machine."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def health(self) -> dict[str, Any] | None:
        """What its liveness page says; None while it says nothing."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._health_url) as response:
                found: dict[str, Any] = await response.json()
                return found
        except (aiohttp.ClientError, OSError, ValueError):
            return None

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> float:
        """Wait until its page shows something; returns seconds since its start."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = await self.health()
                if found is not None and condition(found):
                    return asyncio.get_running_loop().time() - self.started_at_s
                await asyncio.sleep(0.02)

    def _memory_mib(self, name: str) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return round(int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024, 1)


@asynccontextmanager
async def started(url: str) -> AsyncIterator[Operator]:
    """Run an operator while the block runs, unless it ends before."""
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(url)))
        health_port = _free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "stoker_operator", "run", "--host=127.0.0.1"),
            f"--runtime-image={CONFIG.runtime_image}",
            *(f"--health-port={health_port}", "--metrics-port=0", "--log-level=warning"),
            *("--leader-elect", "--leader-elect-namespace=default", "--leader-elect-name=stoker"),
            env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
        )
        try:
            yield Operator(process, health_port)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
    }
