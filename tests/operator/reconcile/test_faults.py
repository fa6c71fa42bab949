"""Every write of every life phase fails in every way, once; the operator may die before and after each.

Whatever happens, the cluster ends as it does undisturbed, and on the way no rollout takes more than it may.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from fakeapi.faults import CRASHES, Fault, FaultAt
from fakeapi.storage import Storage
from operator_world import Object, World
from virtual_time import run_virtual, until

from stoker_operator.api import labels

OTHER = {"engine": {"maxModelLen": 512}}
# Longer than anything that a single failure makes the operator wait for.
QUIET_S = 8.0


def _kinds(inner_loop: set[Fault], *others: Fault) -> list[Any]:
    """The first kinds run in `make test-fast`, the others in `make test` only."""
    marked = [pytest.param(fault, id=fault.value) for fault in sorted(inner_loop, key=str)]
    return marked + [pytest.param(fault, id=fault.value, marks=pytest.mark.slow) for fault in others]


# In virtual time a reset is a timeout that comes at once: one of each says as much as both of both.
WRITE_FAULTS = _kinds(
    {Fault.CRASH_BEFORE, Fault.CRASH_AFTER},
    Fault.CONFLICT,
    Fault.GONE,
    Fault.THROTTLED,
    Fault.SERVER_ERROR,
    Fault.RESET_BEFORE,
    Fault.TIMEOUT_AFTER,
)
READ_FAULTS = _kinds({Fault.GONE}, Fault.THROTTLED, Fault.SERVER_ERROR, Fault.TIMEOUT_BEFORE)


@dataclass(frozen=True)
class Phase:
    """A piece of a ModelDeployment's life.

    Args:
        before: brings the cluster to where the phase begins, undisturbed.
        act: the phase itself, up to the point where all is as wanted.
        min_serving: replicas that must serve at any moment.
        max_pods: pods, not counting those that drain, that may exist at any moment.
    """

    before: Callable[[World], Awaitable[None]]
    act: Callable[[World], Awaitable[None]]
    min_serving: int
    max_pods: int


async def nothing(world: World) -> None:
    del world


async def one(world: World) -> None:
    world.apply(replicas=1)
    await world.ready()


async def two(world: World) -> None:
    world.apply(replicas=2)
    await world.ready()


async def update(world: World) -> None:
    world.apply(**OTHER)
    await world.ready()


async def scale(world: World) -> None:
    world.apply(replicas=3)
    await world.ready()
    world.apply(replicas=1)
    await until(lambda: len(world.pods()) == 1 and world.is_ready(), 300.0, step_s=0.25)


async def suspend(world: World) -> None:
    world.apply(suspend=True)
    await until(lambda: not world.pods(), 300.0, step_s=0.25)
    world.apply(suspend=False)
    await world.ready()


async def delete_in_mid_rollout(world: World) -> None:
    world.apply(**OTHER)
    await until(lambda: any(map(is_draining, world.pods())), 300.0, step_s=0.01)
    world.delete()
    await until(lambda: not world.picture(), 300.0, step_s=0.25)


async def recreate(world: World) -> None:
    uids = {pod["metadata"]["uid"] for pod in world.pods()}
    world.delete()
    world.apply(replicas=2, **OTHER)

    def is_fresh() -> bool:
        found = {pod["metadata"]["uid"] for pod in world.pods()}
        return world.is_ready() and len(found) == 2 and not found & uids

    await until(is_fresh, 300.0, step_s=0.25)


def is_draining(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"][labels.SERVING] == "false")


PHASES = {
    "create": Phase(nothing, two, 0, 2),
    "update": Phase(two, update, 2, 3),
    "scale": Phase(one, scale, 1, 3),
    "suspend": Phase(two, suspend, 0, 2),
    "delete in mid-rollout": Phase(two, delete_in_mid_rollout, 0, 3),
    "delete and recreate": Phase(two, recreate, 0, 4),
}


async def live(world: World, *steps: Callable[[World], Awaitable[None]]) -> None:
    async with world.running():
        for step in steps:
            await step(world)
        await world.settled(QUIET_S)


@cache
def start_of(phase: str) -> Storage:
    """The cluster as the phase finds it."""
    world = World()
    run_virtual(live(world, PHASES[phase].before))
    return world.api.storage


@cache
def undisturbed(phase: str) -> tuple[Object, int, int]:
    """How the phase ends when all goes well, after how many writes and reads of the operator."""
    world = World(start_of(phase))
    run_virtual(live(world, PHASES[phase].act))
    return world.picture(), len(world.api.writes), len(world.api.calls) - len(world.api.writes)


def disturbed(phase: str, fault: Fault, index: int, writes: bool) -> None:
    """The phase with one failure; raises when it matters to the outcome."""
    what = f"{phase}: {fault.value} at {'write' if writes else 'read'} {index}"
    injector = FaultAt(index, fault, writes)
    world = World(start_of(phase))
    world.api.injector = injector
    run_virtual(live(world, PHASES[phase].act))
    picture, *_ = undisturbed(phase)
    assert injector.fired, f"{what}: never came to it"
    assert world.picture() == picture, what
    assert world.num_starts == 1 + (fault in CRASHES), what
    assert min(world.num_serving, default=0) >= PHASES[phase].min_serving, what
    assert max(world.num_pods, default=0) <= PHASES[phase].max_pods, what


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("stoker_operator")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_failed_write_changes_nothing_about_the_outcome(phase: str, fault: Fault) -> None:
    _, num_writes, _ = undisturbed(phase)
    assert num_writes > 5
    for index in range(num_writes):
        disturbed(phase, fault, index, writes=True)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_failed_read_changes_nothing_about_the_outcome(phase: str, fault: Fault) -> None:
    _, _, num_reads = undisturbed(phase)
    assert num_reads >= 10, "a list and a watch of each kind"
    for index in range(num_reads):
        disturbed(phase, fault, index, writes=False)
