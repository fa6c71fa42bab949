"""Nodes that stop reporting, go, come back or kill what runs on them."""

from fakeapi.kubelet import is_ready
from operator_world import Object, World, play, writes_of
from virtual_time import pass_time, until

EVERYTHING = {"scheduling": {"tolerations": [{"operator": "Exists"}]}}


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


def uids(world: World) -> set[str]:
    return {pod["metadata"]["uid"] for pod in world.pods()}


def creations(world: World, start: int = 0) -> int:
    return writes_of(world, start).count("POST default/pods")


async def serving_on_two_nodes(world: World, **spec: object) -> Object:
    """One replica on node-0, and a second node; returns the pod."""
    world.apply(**spec)
    await world.ready()
    await world.settled()
    world.kubelet.add_node("node-1")
    (pod,) = world.pods()
    assert node_of(pod) == "node-0"
    return pod


def test_a_replacement_that_loads_outlives_the_object_of_the_dead_node() -> None:
    async def scenario(world: World) -> None:
        old = await serving_on_two_nodes(world)
        world.kubelet.is_loading = lambda pod: node_of(pod) == "node-1"
        start = len(world.api.writes)
        world.kubelet.nodes.lose("node-0")
        await until(lambda: len(world.pods()) == 2, 60.0)
        (successor,) = uids(world) - {old["metadata"]["uid"]}
        await pass_time(60.0)
        world.kubelet.nodes.remove("node-0")
        await pass_time(120.0)
        assert uids(world) == {successor}, "pod GC took the dead pod, nobody the one that loads"
        world.kubelet.is_loading = lambda pod: False
        await world.ready()
        assert creations(world, start) == 1

    play(scenario)


def test_a_node_that_went_while_the_operator_was_away_is_lost() -> None:
    async def scenario(world: World) -> None:
        await serving_on_two_nodes(world)
        world.stop()
        world.kubelet.nodes.lose("node-0")
        world.kubelet.nodes.remove("node-0")
        world.restart()
        # Before pod GC has done its part.
        await until(lambda: any(node_of(pod) == "node-1" for pod in world.pods()), 30.0)

    play(scenario)


def test_a_kubelet_that_restarts_costs_nothing() -> None:
    async def scenario(world: World) -> None:
        await serving_on_two_nodes(world)
        start = len(world.api.writes)
        world.kubelet.nodes.lose("node-0")
        await pass_time(5.0)
        world.kubelet.nodes.recover("node-0")
        await pass_time(60.0)
        assert creations(world, start) == 0
        assert all(map(is_ready, world.pods()))

    play(scenario)


def test_a_node_that_is_not_known_yet_is_no_lost_one() -> None:
    async def scenario(world: World) -> None:
        await serving_on_two_nodes(world)
        start = len(world.api.writes)
        # An autoscaler's node: its first pod's binding arrives before the node itself.
        world.api.watch_lag_s = 2.0
        world.kubelet.add_node("node-2")
        world.kubelet.add_node("node-0", unschedulable=True)
        world.kubelet.add_node("node-1", unschedulable=True)
        await until(lambda: [node_of(pod) for pod in world.pods()] == ["node-2"], 120.0)
        assert creations(world, start) == 1

    play(scenario)


def test_a_pod_that_tolerates_everything_makes_no_storm_on_a_lost_node() -> None:
    async def scenario(world: World) -> None:
        world.apply(**EVERYTHING)
        await world.ready()
        start = len(world.api.writes)
        world.kubelet.nodes.lose("node-0")
        await pass_time(60.0)
        assert creations(world, start) == 1, "its successor, which has nowhere to go"
        await pass_time(1200.0)
        assert creations(world, start) <= 16, "two in six minutes, once the back-off is at its longest"
        assert sum("deletionTimestamp" not in pod["metadata"] for pod in world.pods()) <= 3

    play(scenario)


def test_a_successor_does_not_go_to_the_lost_node() -> None:
    async def scenario(world: World) -> None:
        await serving_on_two_nodes(world, **EVERYTHING)
        start = len(world.api.writes)
        world.kubelet.nodes.lose("node-0")
        await until(lambda: "node-1" in map(node_of, world.pods()), 30.0)
        await world.ready(deadline_s=60.0)
        assert creations(world, start) == 1

    play(scenario)


def test_a_node_that_comes_back_is_used_again() -> None:
    async def scenario(world: World) -> None:
        world.apply(**EVERYTHING)
        await world.ready()
        world.kubelet.nodes.lose("node-0")
        await until(lambda: len(world.pods()) == 2, 60.0)
        for pod in world.pods():
            if node_of(pod):
                world.kubelet.fail(pod["metadata"]["name"])
        world.kubelet.nodes.recover("node-0")
        await world.ready(deadline_s=180.0)

    play(scenario)
