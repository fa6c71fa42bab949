"""Nodes on their way out, whoever takes them, and cordons that are no drain."""

from dataclasses import replace
from typing import Any

import pytest
from fakeapi.client import delete, get, put
from fakeapi.kubelet import is_serving
from operator_world import CONFIG, Object, World, play, writes_of
from virtual_time import pass_time, until

from stoker_operator.config import OperatorConfig

KEEP = replace(CONFIG, cordoned_nodes="keep")
EVERYTHING: Object = {"scheduling": {"tolerations": [{"operator": "Exists"}]}}


def taint(key: str) -> Object:
    return {"taints": [{"key": key, "effect": "NoSchedule"}]}


def nodes_of(world: World) -> set[str]:
    return {str(pod["spec"].get("nodeName")) for pod in world.pods()}


def creations(world: World, start: int) -> int:
    return writes_of(world, start).count("POST default/pods")


async def serving_on_node_0(world: World, replicas: int = 1, **spec: Any) -> None:
    """All replicas on node-0, and a second node."""
    world.apply(replicas=replicas, **spec)
    await world.ready()
    await world.settled()
    world.kubelet.add_node("node-1")
    world.num_serving.clear()


def evict(world: World, pod: Object) -> None:
    """What the eviction API does once the budget lets it: the condition first, then the deletion."""
    metadata = {"name": pod["metadata"]["name"], "namespace": "default"}
    target = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    conditions = [*pod["status"]["conditions"], target]
    put(world.api, "pods", {"metadata": metadata, "status": {"conditions": conditions}}, "eviction")
    delete(world.api, "pods", metadata["name"])


@pytest.mark.parametrize("config", [CONFIG, KEEP], ids=["drain", "keep"])
@pytest.mark.parametrize(
    "key", ["karpenter.sh/disrupted", "ToBeDeletedByClusterAutoscaler", "stoker.dev/drain"]
)
def test_a_node_that_is_taken_is_left_without_a_gap(config: OperatorConfig, key: str) -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world)
        world.kubelet.add_node("node-0", **taint(key))
        await until(lambda: nodes_of(world) == {"node-1"}, 60.0)
        await world.ready()

    assert min(play(scenario, config=config).num_serving) == 1


def test_a_taint_that_is_taken_back_costs_nothing_once_the_pod_is_where_it_was() -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world)
        world.kubelet.is_loading = lambda pod: pod["spec"].get("nodeName") == "node-1"
        world.kubelet.add_node("node-0", **taint("karpenter.sh/disrupted"))
        await until(lambda: nodes_of(world) == {"node-0", "node-1"}, 30.0)
        world.kubelet.add_node("node-0", taints=[])
        await until(lambda: nodes_of(world) == {"node-0"}, 60.0)

    assert min(play(scenario).num_serving) == 1


def test_a_cordon_that_is_no_drain_moves_nothing() -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world, replicas=2)
        start = len(world.api.writes)
        world.kubelet.add_node("node-0", unschedulable=True)
        await pass_time(3600.0)
        assert writes_of(world, start) == []
        world.apply(replicas=3)
        await until(lambda: nodes_of(world) == {"node-0", "node-1"})

    assert min(play(scenario, config=KEEP).num_serving) == 2


def test_the_first_eviction_from_a_cordoned_node_moves_the_others() -> None:
    async def scenario(world: World) -> None:
        room = {"podDisruptionBudget": {"maxUnavailable": 1}}
        await serving_on_node_0(world, replicas=3, **room)
        world.kubelet.is_loading = lambda pod: pod["spec"].get("nodeName") == "node-1"
        world.kubelet.add_node("node-0", unschedulable=True)
        await pass_time(60.0)
        assert nodes_of(world) == {"node-0"}
        evict(world, world.pods()[0])
        # Longer than anybody sees the pod that was evicted.
        await pass_time(600.0)
        assert sum(map(is_serving, world.pods())) == 2
        assert len(world.pods()) == 4, "one in its place, and one of the surge"
        world.kubelet.is_loading = lambda pod: False
        await until(lambda: nodes_of(world) == {"node-1"}, 120.0)
        await world.ready()

    assert min(play(scenario, config=KEEP).num_serving) == 2


def test_an_eviction_from_a_node_that_stays_is_of_one_pod() -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world, replicas=3)
        kept = {pod["metadata"]["uid"] for pod in world.pods()[1:]}
        evict(world, world.pods()[0])
        await until(lambda: sum(map(is_serving, world.pods())) == 3, 60.0)
        await world.settled()
        # Nor is a cordon an hour later its drain.
        await pass_time(3600.0)
        world.kubelet.add_node("node-0", unschedulable=True)
        await pass_time(600.0)
        assert kept <= {pod["metadata"]["uid"] for pod in world.pods()}

    play(scenario, config=KEEP)


def test_an_uncordoned_node_is_no_drained_one_when_it_is_cordoned_again() -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world, replicas=1)
        world.kubelet.add_node("node-0", unschedulable=True)
        await pass_time(1.0)
        evict(world, world.pods()[0])
        await until(lambda: nodes_of(world) == {"node-1"}, 60.0)
        world.kubelet.add_node("node-0")
        world.kubelet.add_node("node-1", unschedulable=True)
        await pass_time(120.0)
        world.kubelet.add_node("node-0", unschedulable=True)
        start = len(world.api.writes)
        await pass_time(600.0)
        assert writes_of(world, start) == []
        assert get(world.api, "poddisruptionbudgets", "smol") is not None

    play(scenario, config=KEEP)


@pytest.mark.parametrize("spec", [{"unschedulable": True}, taint("karpenter.sh/disrupted")])
def test_pods_that_tolerate_everything_leave_as_well(spec: Object) -> None:
    async def scenario(world: World) -> None:
        await serving_on_node_0(world, **EVERYTHING)
        start = len(world.api.writes)
        world.kubelet.add_node("node-0", **spec)
        await until(lambda: nodes_of(world) == {"node-1"}, 120.0)
        await world.ready()
        await pass_time(600.0)
        assert creations(world, start) == 1

    assert min(play(scenario).num_serving) == 1
