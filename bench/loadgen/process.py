"""A server process to measure: start, readiness, memory and CPU time of its whole process tree, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Program:
    """A server as a command.

    Args:
        name: what messages call it.
        command: `{port}` in a word becomes the port that it shall listen on.
        ready_path: answers 200 once it serves.
        env: beside this process's own variables.
        stopped_status: exit statuses that count as a clean end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    ready_path: str
    env: Mapping[str, str] = field(default_factory=dict)
    stopped_status: tuple[int, ...] = (0,)


def stoker(model: Path, extra_args: Sequence[str] = ()) -> Program:
    """Return `stoker-runtime serve` for a model."""
    command = (sys.executable, "-m", "stoker_runtime", "serve", "--model", str(model), "--host", "127.0.0.1")
    flags = ("--port", "{port}", "--shutdown-delay-s", "0", "--served-model-name", NAME, *extra_args)
    return Program("stoker-runtime", (*command, *flags), "/ready")


@contextlib.asynccontextmanager
async def serving(
    model: Path, extra_args: Sequence[str] = (), timeout_s: float = 120.0
) -> AsyncIterator[Server]:
    """Run the runtime on a free loopback port, yield when it is ready, drain it in the end.

    Raises:
        RuntimeError: as `running` does.
    """
    async with running(stoker(model, extra_args), timeout_s) as server:
        yield server


@contextlib.asynccontextmanager
async def running(program: Program, timeout_s: float) -> AsyncIterator[Server]:
    """Run a server on a free loopback port, yield when it is ready, end it with SIGTERM.

    Raises:
        RuntimeError: it ended, or was not ready in time, or did not end cleanly when told to stop.
    """
    port = _free_port()
    command = [word.replace("{port}", str(port)) for word in program.command]
    # An image holds byte code; here the first start writes it, unless the environment forbids that.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= program.env
    start_s = time.perf_counter()
    quiet = asyncio.subprocess.DEVNULL
    errors = None if program.name == "stoker-runtime" else quiet  # others tell their whole start-up
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=errors, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        await _wait_ready(program, url, process, start_s + timeout_s)
        yield Server(url, process.pid, time.perf_counter() - start_s)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            status = await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            status = await process.wait()
    if status not in program.stopped_status:
        raise RuntimeError(f"{program.name} ended with status {status}")


async def _wait_ready(
    program: Program, url: str, process: asyncio.subprocess.Process, deadline_s: float
) -> None:
    async with aiohttp.ClientSession() as http:
        while time.perf_counter() < deadline_s:
            if process.returncode is not None:
                raise RuntimeError(
                    f"{program.name} ended with status {process.returncode} before it was ready"
                )
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with http.get(f"{url}{program.ready_path}") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(READY_POLL_S)
    raise RuntimeError(f"{program.name} was not ready in time")


def memory(pid: int) -> Memory:
    """Return the resident memory of a process and all its descendants, from the kernel's smaps_rollup."""
    pids = _tree(pid)
    rollups = [Path(f"/proc/{member}/smaps_rollup").read_text() for member in pids]
    return Memory(
        num_processes=len(pids),
        pss_bytes=sum(_field_bytes(rollup, "Pss") for rollup in rollups),
        rss_bytes=sum(_field_bytes(rollup, "Rss") for rollup in rollups),
    )


def cpu_s(pid: int, with_descendants: bool = True) -> float:
    """Return the CPU seconds that a process, and its living descendants, have used."""
    ticks = 0
    for member in _tree(pid) if with_descendants else [pid]:
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


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
