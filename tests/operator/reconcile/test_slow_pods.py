"""What holds up a pod that takes long to be created stands in Events of the kubelet alone."""

from typing import Any

import pytest
from fakeapi import faults
from fakeapi.client import put
from fakeapi.faults import Fault
from operator_world import World, play
from virtual_time import pass_time, until

MOUNT = "MountVolume.SetUp failed for volume model: hostPath type check failed: /models/m is not a directory"


def warn(world: World, reason: str, note: str, seen: str, **changed: Any) -> None:
    (pod,) = world.pods()
    name = f"{pod['metadata']['name']}.{reason.lower()}"
    regarding = {"uid": pod["metadata"]["uid"], **changed}
    body = {"metadata": {"name": name, "namespace": "default"}, "type": "Warning", "reason": reason}
    put(world.api, "events", {**body, "note": note, "regarding": regarding, "deprecatedLastTimestamp": seen})


def reads_of_events(world: World) -> int:
    return sum(call.method == "GET" and call.path.endswith("/events") for call in world.api.calls)


async def stuck(world: World) -> None:
    world.apply()
    await until(world.pods)
    world.kubelet.schedule(world.pod_names()[0])


def test_after_a_minute_the_status_tells_what_the_kubelet_says() -> None:
    async def scenario(world: World) -> None:
        await stuck(world)
        warn(world, "FailedMount", MOUNT, "2026-01-01T00:00:40Z")
        warn(world, "FailedAttachVolume", "an older one", "2026-01-01T00:00:20Z")
        warn(world, "Unhealthy", "of no interest here", "2026-01-01T00:00:50Z")
        await pass_time(50.0)
        assert world.condition("Ready")["reason"] == "CreatingContainer"
        assert reads_of_events(world) == 0
        await until(lambda: world.condition("Ready")["reason"] == "CreateFailed", 20.0)
        assert world.condition("Ready")["message"].endswith(f": {MOUNT}")
        await pass_time(600.0)
        assert 9 <= reads_of_events(world) <= 11
        name = world.pod_names()[0]
        world.kubelet.start(name)
        world.kubelet.make_ready(name)
        await world.ready(deadline_s=5.0)
        reads = reads_of_events(world)
        await pass_time(600.0)
        assert reads_of_events(world) == reads

    play(scenario, kubelet=False)


@pytest.mark.parametrize("may_read", [True, False])
def test_where_the_kubelet_says_nothing_the_status_says_where_to_look(
    may_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(faults.REFUSALS, Fault.CONFLICT, (403, "Forbidden"))

    async def scenario(world: World) -> None:
        await stuck(world)
        warn(world, "FailedMount", "about a namesake", "2026-01-01T00:00:40Z", uid="other")
        if not may_read:
            world.api.injector = lambda call: (
                Fault.CONFLICT if call.method == "GET" and "events" in call.path else None
            )
        await until(lambda: "kubectl describe pod" in world.condition("Ready").get("message", ""), 70.0)
        assert world.condition("Ready")["reason"] == "CreatingContainer"

    play(scenario, kubelet=False)
