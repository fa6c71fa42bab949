"""Groups of several pods that compete for accelerators: one goes, the others wait whole and hold nothing.

The API asks for groups of one pod as yet; here what is wanted is made of more on its way into the passes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fakeapi.admission import Denied, Review
from fakeapi.client import delete, everything
from fakeapi.storage import Change
from operator_builders import with_size
from operator_world import Object, World, play
from virtual_time import pass_time, until

from stoker_operator.api import labels
from stoker_operator.desired import Wanted, desired
from stoker_operator.plan.turns import PATIENCE_S, SPREAD_S
from stoker_operator.reconcile import wanted as lately

GPU = "nvidia.com/gpu"
RELEASED_S = PATIENCE_S + SPREAD_S + 5.0  # with the moment that it takes


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pods of a group by the name of its ModelDeployment; 2 unless set."""
    chosen: dict[str, int] = {}

    def of_several(*args: Any) -> Wanted:
        wanted = desired(*args)
        return with_size(wanted, chosen.get(wanted.model.name, 2))

    monkeypatch.setattr(lately, "desired", of_several)
    return chosen


def group_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"][labels.POD_GROUP])


def owner_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"][labels.DEPLOYMENT])


def is_held_back(pod: Object) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def placed(world: World) -> Counter[str]:
    """Pods with a node by the name of their ModelDeployment."""
    return Counter(owner_of(pod) for pod in world.pods() if pod["spec"].get("nodeName"))


def num_held_back(world: World, name: str) -> int:
    return sum(is_held_back(pod) for pod in world.pods() if owner_of(pod) == name)


class Watched:
    """What happens at any moment.

    Attributes:
        most: groups at once that were let go, and whose pods do not all have nodes; without those that leave.
    """

    def __init__(self, world: World) -> None:
        self.most = 0
        self._world = world
        world.api.storage.on_change(self._look)

    def _look(self, change: Change) -> None:
        if change.plural != "pods":
            return
        pods = self._world.pods()
        leaving = {group_of(pod) for pod in pods if "deletionTimestamp" in pod["metadata"]}
        begun = {group_of(pod) for pod in pods if not is_held_back(pod)}
        lacking = {group_of(pod) for pod in pods if not pod["spec"].get("nodeName")}
        self.most = max(self.most, len((begun & lacking) - leaving))


def gpus(world: World, *counts: int) -> None:
    for number, count in enumerate(counts):
        world.kubelet.add_node(f"node-{number}", allocatable={GPU: str(count)})


def apply(world: World, name: str, **spec: Any) -> None:
    world.apply(name, "default", accelerator={"perPod": 1}, **spec)


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")], ids="-".join)
@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
def test_two_that_compete_for_three_accelerators(order: tuple[str, str], is_killed: bool) -> None:
    first, second = order

    async def scenario(world: World) -> None:
        gpus(world, 2, 1)
        watched = Watched(world)
        apply(world, first)
        apply(world, second)
        await until(lambda: any(not is_held_back(pod) for pod in world.pods()), step_s=0.001)
        if is_killed:
            world.kill()
        await until(lambda: max(placed(world).values(), default=0) == 2, 20.0)
        ((winner, _),) = [item for item in placed(world).items() if item[1] == 2]
        loser = second if winner == first else first
        await world.ready(winner)
        await until(lambda: num_held_back(world, loser) == 2 and placed(world) == {winner: 2}, RELEASED_S)
        await pass_time(1200.0)
        assert placed(world)[winner] == 2
        if is_killed:
            world.kill()
        world.delete(winner)
        await world.ready(loser, deadline_s=400.0)
        assert placed(world) == {loser: 2}
        await world.settled()
        assert watched.most == 1

    play(scenario)


def test_who_waits_says_for_whom_and_goes_at_once_when_that_has_its_nodes() -> None:
    async def scenario(world: World) -> None:
        gpus(world, 4)
        watched = Watched(world)
        world.kubelet.is_loading = lambda pod: True
        names = ["a", "b"]
        for name in names:
            apply(world, name)

        def turns() -> list[Object]:
            found = [world.condition("Scheduled", name) for name in names]
            return [
                each
                for each in found
                if each.get("reason") == "WaitingForTurn" and "after" in each["message"]
            ]

        await until(turns, step_s=0.01)
        (waiting,) = turns()
        assert waiting["status"] == "Unknown"
        await until(lambda: placed(world) == {"a": 2, "b": 2}, 2.0)
        assert watched.most == 1

    play(scenario)


def test_the_status_of_one_that_found_no_room_says_so_all_the_time() -> None:
    async def scenario(world: World) -> None:
        gpus(world, 1)
        apply(world, "smol")
        await until(lambda: world.condition("Scheduled").get("reason") == "Unschedulable", 20.0)
        assert "Insufficient nvidia.com/gpu" in world.condition("Scheduled")["message"]
        await until(lambda: num_held_back(world, "smol") == 2, RELEASED_S)
        await until(lambda: "no nodes for all 2 pods" in world.condition("Scheduled")["message"], 2.0)
        await until(lambda: placed(world) == {}, 2.0)
        assert world.condition("Ready")["reason"] == "Unschedulable"
        await pass_time(3600.0)
        gpus(world, 2)
        await world.ready(deadline_s=400.0)

    play(scenario)


def test_a_large_one_without_room_keeps_no_small_one_waiting(sizes: dict[str, int]) -> None:
    sizes["large"] = 4

    async def scenario(world: World) -> None:
        gpus(world, 3)
        watched = Watched(world)
        apply(world, "large")
        await until(lambda: placed(world)["large"] == 3, 20.0)
        apply(world, "small")
        await world.ready("small", deadline_s=RELEASED_S)
        gpus(world, 6)
        await world.ready("large", deadline_s=400.0)
        assert watched.most == 1

    play(scenario)


def test_one_that_nobody_may_let_go_keeps_no_other_waiting() -> None:
    async def scenario(world: World) -> None:
        gpus(world, 2)

        def refuse(review: Review) -> Object | None:
            is_update = (review.plural, review.operation, review.subresource) == ("pods", "UPDATE", "")
            if is_update and owner_of(review.obj) == "a" and not is_held_back(review.obj):
                raise Denied("not these")
            return None

        world.api.admission.append(refuse)
        apply(world, "a")
        await until(lambda: num_held_back(world, "a") == 2)
        apply(world, "b")
        await world.ready("b", deadline_s=30.0)
        assert num_held_back(world, "a") == 2
        world.api.admission.clear()
        world.delete("b")
        await world.ready("a", deadline_s=600.0)

    play(scenario)


def test_a_group_of_which_one_pod_is_not_let_go_is_tried_a_few_times_a_minute() -> None:
    async def scenario(world: World) -> None:
        gpus(world, 2)

        def refuse(review: Review) -> Object | None:
            is_update = (review.plural, review.operation, review.subresource) == ("pods", "UPDATE", "")
            is_worker = review.obj["metadata"].get("labels", {}).get(labels.RANK) == "1"
            if is_update and is_worker and not is_held_back(review.obj):
                raise Denied("not these")
            return None

        world.api.admission.append(refuse)
        apply(world, "a")
        await until(lambda: placed(world)["a"] == 1)
        await pass_time(50.0)
        assert world.condition("Stalled", "a")["reason"] == "Refused"

    play(scenario)


async def let_a_go_and_b_wait(world: World) -> None:
    """Half of a's group finds the one accelerator, and b's is behind it."""
    gpus(world, 1)
    apply(world, "a")
    await until(lambda: placed(world)["a"] == 1, 20.0)
    apply(world, "b")
    await until(lambda: num_held_back(world, "b") == 2)


def test_a_group_whose_modeldeployment_is_deleted_is_not_waited_for() -> None:
    async def scenario(world: World) -> None:
        await let_a_go_and_b_wait(world)
        await pass_time(5.0)
        assert num_held_back(world, "b") == 2
        world.delete("a")
        await until(lambda: num_held_back(world, "b") == 0, 2.0)

    play(scenario)


def test_one_that_loses_a_pod_on_its_way_lets_the_next_go() -> None:
    async def scenario(world: World) -> None:
        await let_a_go_and_b_wait(world)
        pending = next(
            pod for pod in world.pods() if owner_of(pod) == "a" and not pod["spec"].get("nodeName")
        )
        delete(world.api, "pods", pending["metadata"]["name"])
        await until(lambda: num_held_back(world, "b") == 0, 2.0)

    play(scenario)


def test_single_pods_are_no_business_of_any_line(sizes: dict[str, int]) -> None:
    sizes["smol"] = 1

    async def scenario(world: World) -> None:
        gpus(world, 2)
        apply(world, "smol", replicas=2)
        await world.ready()
        assert world.controller is not None
        assert world.controller.caches.turns.of(("default", "smol")) == {}
        assert not any(map(is_held_back, everything(world.api, "pods")))

    play(scenario)
