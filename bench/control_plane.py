"""Measures the operator as a process of its own against the API server in memory of the component tests.

Prints one JSON object: from the apply of a ModelDeployment to the last write of a child (milliseconds, seen
by the server), resident memory with one ModelDeployment and with all of them (MiB), the time of a restart
until everything is watched, and from the apply of a ModelDeployment to the creation of its first pod beside
many pods that drain, take connections on port 8000 and never answer. Then the same of clusters that are
settled already, with 1,000 and 5,000 ModelDeployments: restart, first full pass, memory, CPU, calls, writes
while nothing happens, and how soon another operator goes on after one that stops or is killed.
Run: ``python bench/control_plane.py``.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator"), str(ROOT / "bench")]

from fakeapi.client import everything, get, put  # noqa: E402
from fakeapi.core import FakeApi  # noqa: E402
from fakeapi.server import FakeServer  # noqa: E402
from fakeapi.storage import Change  # noqa: E402

from controlplane.population import populated  # noqa: E402
from controlplane.scale import measure_scale  # noqa: E402

CHILDREN = ("services", "pods", "poddisruptionbudgets")
DEADLINE_S = 60.0
SILENT_ADDRESS, PORT = "127.0.1.1", 8000  # where the operator looks for engines


class Watcher:
    """Times of the operator's writes, by the name of the ModelDeployment."""

    def __init__(self, api: FakeApi) -> None:
        self.last_child_at: dict[str, float] = {}
        self.first_pod_at: dict[str, float] = {}
        self.reported: dict[str, asyncio.Event] = {}
        api.storage.on_change(self._note)

    def _note(self, change: Change) -> None:
        metadata = change.obj["metadata"]
        if change.plural in CHILDREN:
            name = metadata["labels"]["stoker.dev/deployment"]
            self.last_child_at[name] = asyncio.get_running_loop().time()
            if change.plural == "pods":
                self.first_pod_at.setdefault(name, self.last_child_at[name])
        elif change.plural == "modeldeployments" and "conditions" in change.obj.get("status", {}):
            self.reported.setdefault(metadata["name"], asyncio.Event()).set()

    async def apply(self, api: FakeApi, name: str) -> float:
        """Apply a ModelDeployment; returns seconds until the last write of a child."""
        reported = self.reported.setdefault(name, asyncio.Event())
        started_at = asyncio.get_running_loop().time()
        put(api, "modeldeployments", _model(name))
        async with asyncio.timeout(DEADLINE_S):
            await reported.wait()
        return self.last_child_at[name] - started_at


@asynccontextmanager
async def operator_running(folder: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The operator as a process; ends with SIGTERM."""
    config = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stoker_operator", "run", "--host=127.0.0.1", "--runtime-image=bench"),
        *("--health-port=0", "--metrics-port=0", "--log-level=warning"),
        env={**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), "PYTHONPATH": str(ROOT / "operator")},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024, 1)


def cpu_s(pid: int) -> float:
    """CPU time a process has used: unlike latency, it means the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Of a sample, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "p50": round(cuts[49] * 1e3, 2),
        "p99": round(cuts[98] * 1e3, 2),
        "max": round(max(seconds) * 1e3, 2),
    }


async def when(condition: Callable[[], object]) -> float:
    """Wait for a condition; returns how long it took."""
    loop, tick = asyncio.get_running_loop(), asyncio.Event()
    started_at = loop.time()
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            loop.call_later(0.005, tick.set)
            await tick.wait()
            tick.clear()
    return loop.time() - started_at


def serve_from(api: FakeApi, pod: dict[str, Any]) -> None:
    """Make a pod ready at an address of which nothing answers."""
    ready = [{"type": "Ready", "status": "True"}]
    status = {
        "phase": "Running",
        "podIP": SILENT_ADDRESS,
        "podIPs": [{"ip": SILENT_ADDRESS}],
        "containerStatuses": [{"name": "engine", "ready": True, "started": True, "restartCount": 0}],
        "conditions": ready,
    }
    identity = {name: pod["metadata"][name] for name in ("name", "namespace")}
    put(api, "pods", {"metadata": identity, "status": status}, "kubelet")


def is_draining(pod: dict[str, Any]) -> bool:
    """Whether a pod has left its Service."""
    return bool(pod["metadata"]["labels"]["stoker.dev/serving"] == "false")


def is_ready(model: dict[str, Any]) -> bool:
    """Whether a ModelDeployment's pod is known to answer."""
    return bool((model.get("status") or {}).get("readyReplicas"))


@asynccontextmanager
async def silent_port() -> AsyncIterator[None]:
    """Take connections as pods do that are behind a broken network: nothing comes back."""
    is_over = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        await is_over.wait()
        writer.close()

    async with await asyncio.start_server(wait, SILENT_ADDRESS, PORT):
        try:
            yield
        finally:
            is_over.set()


async def measure_beside_silent_pods(num_silent: int, num_applies: int) -> dict[str, Any]:
    """Apply ModelDeployments one a second while others' pods drain and do not answer."""
    api = FakeApi()
    watcher, server = Watcher(api), FakeServer(api)
    names = [f"silent-{number}" for number in range(num_silent)]
    pod = {"terminationGracePeriodSeconds": 3600}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        async with server.running(), silent_port(), operator_running(Path(folder), server.url):
            for name in names:
                put(api, "modeldeployments", _model(name, pod=pod))
            await when(lambda: len(everything(api, "pods")) == num_silent)
            for one in everything(api, "pods"):
                serve_from(api, one)
            await when(lambda: all(map(is_ready, everything(api, "modeldeployments"))))
            for name in names:
                put(api, "modeldeployments", _model(name, pod=pod, replicas=0))
            await when(lambda: sum(map(is_draining, everything(api, "pods"))) == num_silent)
            for number in range(num_applies):
                await asyncio.sleep(1.0)
                name, started_at = f"new-{number}", asyncio.get_running_loop().time()
                put(api, "modeldeployments", _model(name))
                await when(partial(watcher.first_pod_at.__contains__, name))
                seconds.append(watcher.first_pod_at[name] - started_at)
    return {f"apply_to_first_pod_beside_{num_silent}_silent_drains_ms": percentiles(seconds)}


async def measure(num_applies: int) -> dict[str, Any]:
    """Run everything once."""
    api = FakeApi()
    watcher, server = Watcher(api), FakeServer(api)
    with tempfile.TemporaryDirectory() as folder:
        async with server.running():
            async with operator_running(Path(folder), server.url) as process:
                await when(lambda: sum(call.is_watch for call in api.calls) >= 6)
                await watcher.apply(api, "warm-up")
                resident_with_one = resident_mib(process.pid)
                num_calls, used_s = len(api.calls), cpu_s(process.pid)
                seconds = [await watcher.apply(api, f"model-{number}") for number in range(num_applies)]
                used_s, num_calls = cpu_s(process.pid) - used_s, len(api.calls) - num_calls
                resident_with_all = resident_mib(process.pid)
                stopping_at = asyncio.get_running_loop().time()
            stop_s = asyncio.get_running_loop().time() - stopping_at
            num_calls_before, num_writes = len(api.calls), len(api.writes)
            async with operator_running(Path(folder), server.url):
                restart_s = await when(lambda: sum(c.is_watch for c in api.calls[num_calls_before:]) >= 6)
                put(api, "modeldeployments", _model("one-more"))
                await when(lambda: (get(api, "modeldeployments", "one-more") or {}).get("status"))
                new_writes = [
                    call.path for call in api.writes[num_writes:] if "one-more" not in str(call.body)
                ]
    return {
        "num_applies": num_applies,
        "apply_to_last_child_write_ms": percentiles(seconds),
        "operator_cpu_ms_per_apply": round(used_s / num_applies * 1e3, 2),
        "api_calls_per_apply": round(num_calls / num_applies, 2),
        "resident_mib_with_1": resident_with_one,
        f"resident_mib_with_{num_applies + 1}": resident_with_all,
        "stop_s": round(stop_s, 2),
        "process_start_to_watching_s": round(restart_s, 2),
        "writes_after_restart": len(new_writes),
    }


def _model(name: str, **more: Any) -> dict[str, Any]:
    spec = {"model": {"source": "oci://registry.example/smol:1"}, "accelerator": {"perPod": 0}, **more}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec}


@click.command()
@click.option(
    "--applies", default=200, show_default=True, help="ModelDeployments to apply one after another."
)
@click.option("--silent", default=150, show_default=True, help="Pods that drain and do not answer; 0: none.")
@click.option(
    "--models",
    "sizes",
    multiple=True,
    type=int,
    default=(1000, 5000),
    show_default=True,
    help="ModelDeployments that exist already, of --pods pods each; may be repeated. 0: no such cluster.",
)
@click.option("--pods", default=5, show_default=True, help="Pods of each of those.")
def main(applies: int, silent: int, sizes: tuple[int, ...], pods: int) -> None:
    """Measure the operator's latency and memory; prints JSON."""
    result = asyncio.run(measure(applies)) if applies else {}
    if silent:
        result |= asyncio.run(measure_beside_silent_pods(silent, 5))
    result["clusters"] = [
        asyncio.run(measure_scale(populated(size, pods), size, size * pods)) for size in sizes if size
    ]
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
