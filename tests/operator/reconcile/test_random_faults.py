"""Stories of random trouble, each made of a seed; all must end well, and no promise be broken on the way.

``STOKER_SEED=123 pytest tests/operator/reconcile/test_random_faults.py`` plays one story again; a story that
fails is printed as the list of its steps.
"""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
from fakeapi.client import put
from operator_world import Object
from storm import Storm, play
from storm_guard import Load
from storm_story import tell
from virtual_time import pass_time, run_virtual

from stoker_operator.api import labels
from stoker_operator.cluster.inflight import Question

NUM_BLOCKS = 20
NUM_SEEDS, NUM_LONG_SEEDS = 1_000, 10_000
BLOCK = NUM_SEEDS // NUM_BLOCKS
ASKED = os.environ.get("STOKER_SEED")


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("stoker_operator")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def blocks(first: int, count: int) -> list[range]:
    """Seeds in blocks, of which each is a test; or only the one that is asked for."""
    if ASKED is not None:
        return [range(int(ASKED), int(ASKED) + 1)]
    return [range(start, start + BLOCK) for start in range(first, first + count, BLOCK)]


def named(seeds: range) -> str:
    return f"{seeds.start}-{seeds.stop - 1}"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", blocks(0, NUM_SEEDS), ids=named)
def test_random_trouble_ends_well(seeds: range) -> None:
    for seed in seeds:
        play(tell(seed))


@pytest.mark.long
@pytest.mark.parametrize("seeds", blocks(NUM_SEEDS, NUM_LONG_SEEDS), ids=named)
def test_more_random_trouble_ends_well(seeds: range) -> None:
    for seed in seeds:
        play(tell(seed))


def test_a_seed_makes_one_story() -> None:
    assert tell(7) == tell(7)
    assert str(tell(7)).startswith("STOKER_SEED=7: ")
    assert tell(7) != tell(8)


Breach = Callable[[Storm], Awaitable[object]]


async def write(storm: Storm, method: str, name: str, body: Object | None = None) -> None:
    """Do what no operator may do to a pod."""
    path = "/api/v1/namespaces/default/pods" + (f"/{name}" if name else "")
    sent = None if body is None else json.dumps(body).encode()
    reply = await storm.world.api.request(method, path, {}, sent, "application/merge-patch+json")
    assert reply.code < 300, reply


async def start_one_too_many(storm: Storm) -> None:
    for name in ("a", "b"):
        pod = storm.world.pods()[0]
        more = {**pod, "metadata": {**pod["metadata"], "name": name}, "status": {}}
        await write(storm, "POST", "", more)


async def stop_one_too_many(storm: Storm) -> None:
    unserve = {"metadata": {"labels": {labels.SERVING: "false"}}}
    await write(storm, "PATCH", storm.world.pod_names()[0], unserve)


async def delete_one_that_serves(storm: Storm) -> None:
    await write(storm, "DELETE", storm.world.pod_names()[0], {})


async def drain_one_that_serves(storm: Storm) -> None:
    uid = storm.world.pods()[0]["metadata"]["uid"]
    address = storm.world.pods()[0]["status"]["podIP"]
    await storm.world.kubelet.read({"": Question(f"http://{address}/load", f"http://{address}/drain", uid)})


async def cut_requests_off(storm: Storm) -> None:
    pod = storm.world.pods()[0]
    storm.guard.load = Load(0.0, 1.0, (2,))
    storm.guard.send(pod["metadata"]["uid"])
    # By somebody else, so only the deletion after it is at fault.
    put(storm.world.api, "pods", {"metadata": {**identity(pod), "labels": {labels.SERVING: "false"}}})
    await pass_time(5.0)
    await write(storm, "DELETE", pod["metadata"]["name"], {})


def identity(pod: Object) -> Object:
    return {"name": pod["metadata"]["name"], "namespace": "default"}


@pytest.mark.parametrize(
    ("breach", "complaint"),
    [
        (start_one_too_many, "b is one too many"),
        (stop_one_too_many, "1 others answer, 2 have to"),
        (delete_one_that_serves, "is deleted while it serves"),
        (drain_one_that_serves, "is told to drain while it serves"),
        (cut_requests_off, "is deleted after 5.0 s with 2 requests in flight"),
    ],
)
def test_the_guard_sees_what_no_operator_may_do(breach: Breach, complaint: str) -> None:
    storm = Storm(replace(tell(0), replicas=2, limits=(1, 0), slots=0, steps=()))

    async def scenario() -> None:
        async with storm.world.running():
            await pass_time(30.0)
            storm.world.stop()
            await breach(storm)

    run_virtual(scenario())
    assert complaint in " ".join(storm.guard.problems)
