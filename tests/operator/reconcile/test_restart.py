"""New pods for the same spec, asked for by an annotation: no change of the generation tells of it."""

from __future__ import annotations

from fakeapi.client import put
from operator_world import NAME, World, play
from virtual_time import until

from stoker_operator.api import labels

EARLY, LATE = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"


def annotate(world: World, text: str | None) -> None:
    metadata = {"name": NAME, "namespace": "default", "annotations": {labels.RESTARTED_AT: text}}
    put(world.api, "modeldeployments", {"metadata": metadata})


def test_an_annotation_replaces_the_pods_one_after_another_and_only_once() -> None:
    async def scenario(world: World) -> None:
        world.apply(replicas=3)
        await world.ready()
        await world.settled()
        before = set(world.pod_names())
        start = len(world.num_serving)
        annotate(world, LATE)
        await until(lambda: world.status().get("restartedAt") == LATE, 5.0)
        await until(lambda: world.is_ready() and not before & set(world.pod_names()), 300.0)
        await world.settled()
        assert min(world.num_serving[start:]) == 3
        after = world.pod_names()
        assert len(after) == 3
        for text in (None, EARLY, LATE, None):
            annotate(world, text)
            await world.settled()
            assert world.pod_names() == after, f"{text} is no newer wish"
            assert world.is_ready()

    play(scenario)


def test_an_annotation_that_is_taken_back_while_the_operator_is_away_restarts_nothing() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        annotate(world, LATE)
        await until(lambda: world.status().get("restartedAt") == LATE, 5.0)
        await world.ready()
        await world.settled()
        after = world.pod_names()
        world.stop()
        annotate(world, None)
        world.restart()
        await world.settled()
        assert world.pod_names() == after

    play(scenario)


def test_a_text_that_is_no_time_stalls_and_keeps_the_pods() -> None:
    async def scenario(world: World) -> None:
        world.apply()
        await world.ready()
        before = world.pod_names()
        annotate(world, "now")
        await until(lambda: world.condition("Stalled").get("reason") == "InvalidSpec", 5.0)
        assert labels.RESTARTED_AT in world.condition("Stalled")["message"]
        await world.settled()
        assert world.pod_names() == before
        annotate(world, None)
        await world.ready()
        assert world.pod_names() == before

    play(scenario)
