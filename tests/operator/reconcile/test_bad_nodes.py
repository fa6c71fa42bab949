"""Nodes that report and yet run nothing: what is sent there fails or crashes, and works elsewhere."""

from fakeapi.kubelet import is_ready
from operator_world import Object, World, play, writes_of
from virtual_time import pass_time, until


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


def creations(world: World, start: int = 0) -> int:
    return writes_of(world, start).count("POST default/pods")


def test_a_kubelet_that_rejects_every_pod_is_left() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.add_node("node-1")
        world.kubelet.is_rejected = lambda pod: node_of(pod) == "node-0"
        world.apply()
        await world.ready(deadline_s=60.0)
        assert creations(world) == 3
        world.kubelet.is_rejected = lambda pod: False

    play(scenario)


def test_pods_that_fail_again_and_again_stall() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.is_rejected = lambda pod: True
        world.apply()
        await until(lambda: world.condition("Stalled").get("reason") == "PodFailed", 60.0)
        assert "UnexpectedAdmissionError" in world.condition("Stalled")["message"]
        await pass_time(600.0)
        assert creations(world) <= 20, "only one node: now and then one keeps off it in vain for a minute"
        world.kubelet.is_rejected = lambda pod: False
        await world.ready(deadline_s=600.0)

    play(scenario)


def test_a_pod_that_crashes_again_and_again_is_tried_elsewhere() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.add_node("node-1")
        world.kubelet.is_broken = lambda pod: node_of(pod) == "node-0"
        world.kubelet.num_crashes = 4
        world.apply()
        await until(lambda: world.condition("Stalled").get("reason") == "ContainerCrashed", 60.0)
        await pass_time(60.0)
        assert creations(world) == 1, "four crashes may be chance"
        world.kubelet.num_crashes = 5
        await world.ready(deadline_s=60.0)
        assert [node_of(pod) for pod in world.pods() if is_ready(pod)] == ["node-1"]
        assert creations(world) == 2

    play(scenario)


def test_a_model_that_crashes_everywhere_is_moved_three_times_and_no_more() -> None:
    async def scenario(world: World) -> None:
        for number in range(1, 6):
            world.kubelet.add_node(f"node-{number}")
        world.kubelet.is_broken = lambda pod: True
        world.kubelet.num_crashes = 9
        world.apply()
        await pass_time(600.0)
        assert creations(world) == 4
        assert world.condition("Stalled")["reason"] == "ContainerCrashed"

    play(scenario)


def test_an_engine_that_names_its_model_as_the_cause_stays_where_it_is() -> None:
    async def scenario(world: World) -> None:
        world.kubelet.add_node("node-1")
        world.kubelet.is_broken = lambda pod: True
        world.kubelet.num_crashes = 9
        world.kubelet.last_words = '{"reason": "UnsupportedModel", "message": "no such architecture"}'
        world.apply()
        await pass_time(600.0)
        assert creations(world) == 1

    play(scenario)
