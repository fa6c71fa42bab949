"""A `stoker-runtime serve` process to measure: start, readiness, memory of its whole process tree, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

NAME = "bench"  # what the model is called, whichever it is
READY_POLL_S = 0.02
STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process tree. PSS shares a page among its users, RSS counts it for each."""

    num_processes: int
    pss_bytes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Server:
    """A ready server."""

    url: str
    pid: int
    start_to_ready_s: float


@contextlib.asynccontextmanager
async def serving(
    model: Path, extra_args: Sequence[str] = (), timeout_s: float = 120.0
) -> AsyncIterator[Server]:
    """Run the runtime on a free loopback port, yield when `/ready` says 200, drain it in the end.

    Raises:
        RuntimeError: it ended, or was not ready in time, or did not exit 0 when told to stop.
    """
    port = _free_port()
    command = [sys.executable, "-m", "stoker_runtime", "serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--shutdown-delay-s", "0", "--served-model-name", NAME, *extra_args]
    # An image holds byte code; here the first start writes it, unless the environment forbids that.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        await _wait_ready(url, process, start_s + timeout_s)
        yield Server(url, process.pid, time.perf_counter() - start_s)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            status = await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            status = await process.wait()
    if status != 0:
        raise RuntimeError(f"stoker-runtime ended with status {status}")


async def _wait_ready(url: str, process: asyncio.subprocess.Process, deadline_s: float) -> None:
    async with aiohttp.ClientSession() as http:
        while time.perf_counter() < deadline_s:
            if process.returncode is not None:
                raise RuntimeError(
                    f"stoker-runtime ended with status {process.returncode} before it was ready"
                )
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with http.get(f"{url}/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(READY_POLL_S)
    raise RuntimeError("stoker-runtime was not ready in time")


def memory(pid: int) -> Memory:
    """Return the resident memory of a process and all its descendants, from the kernel's smaps_rollup."""
    pids = _tree(pid)
    rollups = [Path(f"/proc/{member}/smaps_rollup").read_text() for member in pids]
    return Memory(
        num_processes=len(pids),
        pss_bytes=sum(_field_bytes(rollup, "Pss") for rollup in rollups),
        rss_bytes=sum(_field_bytes(rollup, "Rss") for rollup in rollups),
    )


def _tree(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        for task in os.listdir(f"/proc/{member}/task"):
            children = Path(f"/proc/{member}/task/{task}/children").read_text()
            found.extend(int(child) for child in children.split())
    return found


def _field_bytes(rollup: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", rollup, re.MULTILINE)
    if match is None:
        raise ValueError(f"smaps_rollup has no field {name}")
    return int(match[1]) * 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
