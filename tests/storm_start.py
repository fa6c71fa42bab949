"""How stories of random trouble begin: a ModelDeployment that answers, brought there once for its kind."""

from __future__ import annotations

from functools import cache
from typing import Any

from fakeapi.kubelet import Kubelet
from fakeapi.storage import Storage
from operator_world import World
from storm_story import Story
from virtual_time import run_virtual


def start_of(story: Story) -> Storage:
    """The cluster in which the story begins, but for its limits of a rollout; the caller copies it."""
    return _start(story.replicas, story.slots, story.num_nodes, story.grace_s)


def spec_of(replicas: int, slots: int, grace_s: int) -> dict[str, Any]:
    """What the user applies at first, limits aside."""
    return {
        "replicas": replicas,
        "accelerator": {"perPod": 1 if slots else 0},
        "pod": {"terminationGracePeriodSeconds": grace_s},
    }


def add_node(kubelet: Kubelet, name: str, slots: int) -> None:
    """Add a node, or set one to rights."""
    kubelet.add_node(name, allocatable={"nvidia.com/gpu": str(slots)} if slots else None, taints=[])


@cache
def _start(replicas: int, slots: int, num_nodes: int, grace_s: int) -> Storage:
    world = World()
    for number in range(num_nodes):
        add_node(world.kubelet, f"node-{number}", slots)

    async def begin() -> None:
        async with world.running():
            world.apply(**spec_of(replicas, slots, grace_s))
            await world.ready()
            await world.settled()

    run_virtual(begin())
    return world.api.storage
