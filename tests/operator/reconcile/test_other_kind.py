"""Another project's CRD with the same kind and plural stands beside ours, with objects of its own."""

from __future__ import annotations

import pytest
from fakeapi.client import delete, everything, get, put
from fakeapi.core import Object
from fakeapi.kinds import THEIRS
from operator_world import NAME, World, play, writes_of
from virtual_time import pass_time, until


def put_theirs(world: World) -> Object:
    """One of theirs, in the namespace and under the name of ours, with a spec that ours does not know."""
    body = {"metadata": {"name": NAME, "namespace": "default"}, "spec": {"predictor": {"stages": 3}}}
    return put(world.api, THEIRS.table, body)


def owner(theirs: Object) -> Object:
    return {
        "apiVersion": THEIRS.api_version,
        "kind": THEIRS.kind,
        "name": NAME,
        "uid": theirs["metadata"]["uid"],
        "controller": True,
    }


def test_theirs_alone_are_nothing_to_us() -> None:
    async def scenario(world: World) -> None:
        theirs = put_theirs(world)
        await pass_time(600.0)
        assert get(world.api, THEIRS.table, NAME) == theirs

    world = play(scenario)
    assert writes_of(world) == []
    assert not [call for call in world.api.calls if THEIRS.group in call.path]


def test_two_of_one_name_live_beside_each_other() -> None:
    async def scenario(world: World) -> None:
        theirs = put_theirs(world)
        world.apply(replicas=2)
        await world.ready()
        world.apply(replicas=1)
        await until(lambda: len(world.pods()) == 1)
        assert get(world.api, THEIRS.table, NAME) == theirs
        delete(world.api, THEIRS.table, NAME)
        await pass_time(60.0)
        assert world.is_ready()
        assert len(world.pods()) == 1
        theirs = put_theirs(world)
        world.delete()
        await until(lambda: not world.pods() and not everything(world.api, "services"))
        assert get(world.api, THEIRS.table, NAME) == theirs

    play(scenario)


@pytest.mark.parametrize("plural", ["services", "poddisruptionbudgets"])
def test_what_theirs_own_under_our_name_is_neither_taken_nor_waited_for(plural: str) -> None:
    """Kind and name of the owner are those of ours, also of one that was deleted and left children behind."""

    async def scenario(world: World) -> None:
        theirs = put_theirs(world)
        metadata = {"name": NAME, "namespace": "default", "ownerReferences": [owner(theirs)]}
        child = put(world.api, plural, {"metadata": metadata, "spec": {"ports": [{"port": 1}]}})
        world.apply(replicas=2)
        await until(lambda: world.condition("Stalled").get("reason") == "NameConflict")
        await pass_time(60.0)
        assert get(world.api, plural, NAME) == child
        delete(world.api, THEIRS.table, NAME)
        await world.ready(deadline_s=60.0)

    play(scenario)


def test_pods_of_theirs_are_not_counted_whatever_labels_they_have() -> None:
    async def scenario(world: World) -> None:
        theirs = put_theirs(world)
        world.apply()
        await world.ready()
        (ours,) = world.pods()
        metadata = {"name": "theirs-0", "namespace": "default", "ownerReferences": [owner(theirs)]}
        body = {"metadata": {**metadata, "labels": dict(ours["metadata"]["labels"])}, "spec": ours["spec"]}
        put(world.api, "pods", body)
        await pass_time(60.0)
        assert world.status()["replicas"] == 1
        assert len(world.pods()) == 2

    play(scenario)
