"""Two whole operators on one cluster: one writes, the other follows and goes on when the first is gone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from fakeapi.client import delete, everything, put
from fakeapi.faults import Call, Fault
from operator_pair import ELECTION, Replica, Replicas
from prometheus_client.exposition import generate_latest
from virtual_time import pass_time, run_virtual, until

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.fence import NotLeading
from stoker_operator.cluster.resources import PODS

CRASH_WITHIN_S = 10.0
STOP_WITHIN_S = 1.0
AT_ONCE_S = 0.2


def play(scenario: Callable[[Replicas], Awaitable[None]], num: int = 2) -> Replicas:
    """A scenario with several operators; there are never two leaders."""

    async def main() -> Replicas:
        world = Replicas(num)
        async with world.running():
            await scenario(world)
        assert world.max_leading <= 1
        assert [replica.num_beside for replica in world.replicas] == [0] * num
        return world

    return run_virtual(main())


def other_than(world: Replicas, replica: Replica) -> Replica:
    return next(found for found in world.replicas if found is not replica)


async def seconds_until(condition: Callable[[], object]) -> float:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    await until(condition, 60.0, step_s=0.01)
    return loop.time() - started_at


def test_one_writes_and_both_follow() -> None:
    async def scenario(world: Replicas) -> None:
        world.apply(replicas=2)
        await world.ready()
        leader = await world.led()
        follower = other_than(world, leader)
        assert (leader.num_writes > 5, follower.num_writes) == (True, 0)
        assert follower.controller is not None
        assert follower.controller.caches.unsynced() == []
        assert len(follower.controller.caches.keys()) == 1
        assert world.lease()["holderIdentity"] == f"{leader.name}_1"
        events = [event for event in everything(world.api, "events") if event["reason"] == "LeaderElection"]
        assert [event["regarding"]["kind"] for event in events] == ["Lease"]

    play(scenario)


def test_only_the_leader_tells_of_modeldeployments() -> None:
    def page(replica: Replica) -> str:
        return generate_latest(replica.metrics.registry).decode()

    async def scenario(world: Replicas) -> None:
        world.apply(replicas=1)
        await world.ready()
        leader = await world.led()
        follower = other_than(world, leader)
        assert "stoker_operator_is_leader 1.0" in page(leader)
        assert 'stoker_modeldeployment_status_replicas_ready{modeldeployment="smol"' in page(leader)
        assert "stoker_operator_is_leader 0.0" in page(follower)
        assert "stoker_modeldeployment_status_replicas_ready{" not in page(follower)
        assert 'stoker_operator_cached_objects{resource="pods"} 1.0' in page(follower)

    play(scenario)


def test_one_that_stops_in_the_middle_of_a_rollout_hands_over_within_a_second() -> None:
    async def scenario(world: Replicas) -> None:
        world.apply(replicas=3)
        await world.ready()
        leader = await world.led()
        await pass_time(5.0)
        world.apply(engine={"maxModelLen": 512})
        await until(lambda: len(world.pods()) == 4, step_s=0.01)
        leader.stop()
        follower = other_than(world, leader)
        assert await seconds_until(lambda: follower.is_leading) <= STOP_WITHIN_S
        await until(lambda: follower.num_writes, 5.0)
        await world.ready()
        assert max(world.num_pods) <= 4
        assert min(world.num_serving[world.num_serving.index(3) :]) >= 3
        assert world.lease()["leaseTransitions"] == 1

    play(scenario)


def test_one_that_stops_hands_over_at_once_to_one_that_has_only_just_come() -> None:
    async def scenario(world: Replicas) -> None:
        leader = await world.led()
        follower = other_than(world, leader)
        num_starts = follower.num_starts
        follower.kill()
        await until(lambda: follower.num_starts > num_starts and follower.elector, step_s=0.01)
        await until(lambda: follower.elector and follower.elector.lease, step_s=0.01)
        leader.stop()
        assert await seconds_until(lambda: follower.is_leading) <= AT_ONCE_S

    play(scenario)


def test_one_that_is_killed_in_the_middle_of_a_rollout_is_replaced() -> None:
    async def scenario(world: Replicas) -> None:
        world.apply(replicas=3)
        await world.ready()
        leader = await world.led()
        world.apply(engine={"maxModelLen": 512})
        await until(lambda: len(world.pods()) == 4, step_s=0.01)
        leader.kill(restart=False)
        follower = other_than(world, leader)
        assert await seconds_until(lambda: follower.is_leading) <= CRASH_WITHIN_S
        await world.ready()
        assert max(world.num_pods) <= 4

    play(scenario)


def test_one_that_is_cut_off_stops_before_another_leads() -> None:
    async def scenario(world: Replicas) -> None:
        world.apply(replicas=2)
        await world.ready()
        leader = await world.led()
        leader.is_cut = True
        assert await seconds_until(lambda: not leader.is_leading) <= ELECTION.renew_deadline_s
        num_writes = leader.num_writes
        follower = other_than(world, leader)
        world.apply(replicas=1)
        assert await seconds_until(lambda: follower.is_leading) <= CRASH_WITHIN_S
        await until(lambda: world.is_ready() and len(world.pods()) == 1, 300.0, step_s=0.25)
        assert leader.num_writes == num_writes
        leader.is_cut = False
        await pass_time(20.0)
        assert (leader.is_leading, follower.is_leading) == (False, True)

    play(scenario)


def test_a_leader_whose_lease_is_deleted_or_emptied_keeps_it() -> None:
    async def scenario(world: Replicas) -> None:
        leader = await world.led()
        await pass_time(5.0)
        delete(world.api, "leases", ELECTION.name)
        await pass_time(3.0)
        assert world.lease()["holderIdentity"] == f"{leader.name}_1"
        emptied = {
            "metadata": {"name": ELECTION.name, "namespace": "default"},
            "spec": {"holderIdentity": None},
        }
        put(world.api, "leases", emptied)
        await pass_time(3.0)
        assert world.lease()["holderIdentity"] == f"{leader.name}_1"
        assert leader.is_leading

    play(scenario)


def test_a_leader_whose_lease_somebody_takes_stops() -> None:
    async def scenario(world: Replicas) -> None:
        leader = await world.led()
        taken = {"holderIdentity": "somebody-else", "leaseDurationSeconds": 7}
        put(world.api, "leases", {"metadata": {"name": ELECTION.name, "namespace": "default"}, "spec": taken})
        assert await seconds_until(lambda: not leader.is_leading) <= 1.5
        await pass_time(3.0)
        assert world.leader() is None
        assert await seconds_until(world.leader) <= CRASH_WITHIN_S

    play(scenario)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_costs_a_moment_at_most(step_s: float) -> None:
    async def scenario(world: Replicas) -> None:
        leader = await world.led()
        await pass_time(5.0)
        leader.ahead_s = step_s
        await pass_time(3.0)
        assert leader.is_leading

    play(scenario)


def test_one_that_was_suspended_writes_nothing_before_it_has_looked() -> None:
    async def scenario(world: Replicas) -> None:
        leader = await world.led()
        await pass_time(5.0)
        leader.slept_s = 6.0
        world.apply(replicas=1)
        assert not leader.is_leading
        assert leader.elector is not None
        with pytest.raises(NotLeading):
            await KubeClient(leader.elector.transport).create(PODS, {"metadata": {"namespace": "default"}})
        assert await seconds_until(lambda: leader.is_leading) <= 1.5, "nobody else could take it"
        await world.ready()

    play(scenario)


CRASHES = [Fault.CRASH_BEFORE, pytest.param(Fault.CRASH_AFTER, marks=pytest.mark.slow)]


@pytest.mark.parametrize("fault", CRASHES)
def test_whoever_dies_at_a_write_of_a_rollout_is_replaced_by_one_that_lags(fault: Fault) -> None:
    async def scenario(world: Replicas, index: int) -> bool:
        world.apply(replicas=2)
        await world.ready()
        leader = await world.led()
        follower, left = other_than(world, leader), [index]
        follower.lag_s = 0.3
        await world.settled(5.0)
        world.num_serving.clear()
        world.num_pods.clear()

        def inject(call: Call) -> Fault | None:
            if not call.is_write or "/leases" in call.path:
                return None
            left[0] -= 1
            return fault if left[0] == -1 else None

        world.api.injector = inject
        world.apply(engine={"maxModelLen": 512})
        await world.ready()
        await world.settled(5.0)
        died = left[0] < 0
        assert leader.num_starts == 1 + died
        if died:
            await until(lambda: follower.is_leading, CRASH_WITHIN_S)
            await world.settled(5.0)
            assert world.is_ready()
        assert min(world.num_serving) >= 2
        assert max(world.num_pods) <= 3
        assert len(world.pods()) == 2
        return died

    for index in itertools.count():
        died: list[bool] = []

        async def one(world: Replicas, index: int = index, died: list[bool] = died) -> None:
            died.append(await scenario(world, index))

        play(one)
        if not died[0]:
            break
    assert index > 5, "a rollout has more writes than that"


LEASE_FAULTS = [
    Fault.CONFLICT,
    Fault.THROTTLED,
    Fault.SERVER_ERROR,
    Fault.RESET_BEFORE,
    Fault.RESET_AFTER,
    Fault.TIMEOUT_AFTER,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
]


@pytest.mark.parametrize("fault", LEASE_FAULTS, ids=str)
def test_every_call_about_the_lease_may_fail(fault: Fault) -> None:
    """Each of the first calls in turn: reads, the claim, renewals of two operators."""

    async def scenario(world: Replicas) -> None:
        world.apply(replicas=1)
        await world.ready()
        await until(lambda: world.leader() is not None, 20.0)
        await pass_time(8.0)

    for index in range(12):
        left = [index]

        def inject(call: Call, left: list[int] = left) -> Fault | None:
            if "/leases" not in call.path or call.is_watch:
                return None
            left[0] -= 1
            return fault if left[0] == -1 else None

        async def disturbed(world: Replicas) -> None:
            world.api.injector = inject
            await scenario(world)

        play(disturbed)
        assert left[0] < 0, "it never came to it"
