"""The large clusters of the control plane's benchmark are at rest, as an operator sees them."""

from __future__ import annotations

from fakeapi.client import everything
from operator_world import World
from virtual_time import pass_time, run_virtual

from controlplane.population import populated


def test_nothing_is_left_to_do_in_a_populated_cluster() -> None:
    world = World(populated(3, 2))
    assert len(everything(world.api, "pods")) == 6

    async def main() -> None:
        async with world.running(kubelet=False):
            await pass_time(10.0)
            assert world.controller is not None
            assert len(world.controller.caches.keys()) == 3

    run_virtual(main())
    assert world.api.writes == []
    assert all(
        world.is_ready(model["metadata"]["name"]) for model in everything(world.api, "modeldeployments")
    )
