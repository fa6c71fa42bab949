"""Restart, memory, CPU and calls of an operator over many ModelDeployments, and how another takes over."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from typing import Any

from fakeapi.client import get, put
from fakeapi.core import FakeApi
from fakeapi.faults import Call
from fakeapi.server import FakeServer
from fakeapi.storage import Change, Storage

from controlplane.population import pod_kib
from controlplane.process import DEADLINE_S, Operator, started

IDLE_S = 20.0
SPEC = {"model": {"source": "oci://registry.example/smol:1"}, "accelerator": {"perPod": 0}}
LEASE = {"metadata": {"name": "stoker", "namespace": "default"}}


async def measure_scale(storage: Storage, num_models: int, num_pods: int) -> dict[str, Any]:
    """Start an operator beside what is settled, leave it idle, then take it away in two ways."""
    api = FakeApi(storage)
    put(api, "leases", LEASE)
    server = FakeServer(api)
    async with server.running(), started(server.url) as first:
        result = {
            "num_models": num_models,
            "num_pods": num_pods,
            "stored_pod_kib": pod_kib(api.storage),
            **await _restart(api, first),
            **await _idle(api, first),
        }
        async with started(server.url) as second:
            await second.until(_is_synced)
            result["follower_resident_mib"] = second.resident_mib
            result["stop"] = await _hand_over(api, first, signal.SIGTERM)
            async with started(server.url) as third:
                await third.until(_is_synced)
                await second.until(_is_at_rest)
                result["kill"] = await _hand_over(api, second, signal.SIGKILL)
    return result


async def _restart(api: FakeApi, operator: Operator) -> dict[str, Any]:
    """From the start of the process to the end of the first pass over everything."""
    synced_s = await operator.until(_is_synced)
    synced_cpu_s = operator.cpu_s
    leading_s = await operator.until(lambda found: bool(found["is_leading"]))
    passed_s = await operator.until(_is_at_rest)
    return {
        "start_to_synced_s": round(synced_s, 2),
        "start_to_synced_cpu_s": round(synced_cpu_s, 2),
        "first_full_pass_s": round(passed_s - leading_s, 2),
        "first_full_pass_cpu_s": round(operator.cpu_s - synced_cpu_s, 2),
        "resident_mib": operator.resident_mib,
        "most_resident_mib": operator.most_resident_mib,
        "calls_of_a_restart": _counted(api.calls),
    }


async def _idle(api: FakeApi, operator: Operator) -> dict[str, Any]:
    """With nothing to do."""
    num_calls, cpu_s = len(api.calls), operator.cpu_s
    await asyncio.sleep(IDLE_S)
    calls = api.calls[num_calls:]
    return {
        "idle_s": IDLE_S,
        "idle_cpu_s": round(operator.cpu_s - cpu_s, 2),
        "idle_writes": sum(call.is_write and "/leases/" not in call.path for call in calls),
        "idle_calls": _counted(calls),
        "idle_resident_mib": operator.resident_mib,
    }


async def _hand_over(api: FakeApi, leader: Operator, number: signal.Signals) -> dict[str, float]:
    """Take the leader away, and apply something when it is gone; seconds until another leads and acts."""
    name, holder = f"new-{number.name.lower()}", _holder(get(api, "leases", "stoker"))
    loop = asyncio.get_running_loop()
    at_s: dict[str, float] = {}
    is_gone, is_made = asyncio.Event(), asyncio.Event()

    def note(change: Change) -> None:
        now_s = loop.time()
        if change.plural == "leases" and _holder(change.obj) is None:
            at_s.setdefault("given_back_s", now_s)
        elif change.plural == "leases" and _holder(change.obj) != holder:
            at_s.setdefault("taken_s", now_s)
        elif change.plural == "pods" and change.obj["metadata"]["name"].startswith(name):
            at_s.setdefault("first_pod_s", now_s)
            is_made.set()
        if at_s:
            is_gone.set()

    api.storage.on_change(note)
    leader.process.send_signal(number)
    signalled_at_s = loop.time()
    async with asyncio.timeout(DEADLINE_S):
        await (leader.process.wait() if number == signal.SIGKILL else is_gone.wait())
        put(api, "modeldeployments", {"metadata": {"name": name, "namespace": "default"}, "spec": SPEC})
        await is_made.wait()
    return {name: round(when_s - signalled_at_s, 2) for name, when_s in at_s.items()}


def _holder(lease: dict[str, Any] | None) -> Any:
    return ((lease or {}).get("spec") or {}).get("holderIdentity")


def _is_synced(found: dict[str, Any]) -> bool:
    return not found["waiting_for"]


def _is_at_rest(found: dict[str, Any]) -> bool:
    return bool(found["is_leading"]) and found["queue"] == 0


def _counted(calls: list[Call]) -> dict[str, int]:
    def kind(call: Call) -> str:
        verb = "watch" if call.is_watch else call.method.lower()
        plural = re.sub(r"^/(api|apis/[^/]+)/[^/]+/(namespaces/[^/]+/)?", "", call.path).split("/")[0]
        return f"{verb} {plural}"

    return dict(sorted(Counter(map(kind, calls)).items()))
