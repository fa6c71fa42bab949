"""Pods are asked beside the passes: however silent they are, nobody else waits for them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from fakeapi.client import everything
from hypothesis import given
from hypothesis import strategies as st
from operator_world import World, play
from virtual_time import EPOCH, pass_time, run_virtual, until, virtual_now

from stoker_operator.api import labels
from stoker_operator.cluster.inflight import PodAnswer, Question
from stoker_operator.lanes import Priority
from stoker_operator.observed import Reading
from stoker_operator.reconcile.readings import MAX_AT_ONCE, Readings, is_news

KEY = ("default", "smol")
NUM_SILENT = 150


def pod(number: int) -> dict[str, Any]:
    return {"metadata": {"uid": f"uid-{number}"}, "status": {"podIP": f"10.0.{number // 250}.{number % 250}"}}


def uids(*numbers: int) -> dict[str, Any]:
    return {f"uid-{number}": pod(number) for number in numbers}


class Pods:
    """Answers as told, and notes when who was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self.most_at_once = 0
        self.answers: Callable[[str], PodAnswer | Exception] = lambda uid: PodAnswer(b'{"in_flight": 1}')
        self.takes_s: Callable[[str], float] = lambda uid: 0.0
        self._num_now = 0

    async def read(self, questions: Mapping[str, Question]) -> dict[str, PodAnswer]:
        result = {}
        for name, question in questions.items():
            uid = question.drain_key
            self.asked.append((round(asyncio.get_running_loop().time(), 3), uid))
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
            await pass_time(self.takes_s(uid))
            self._num_now -= 1
            answer = self.answers(uid)
            if isinstance(answer, Exception):
                raise answer
            result[name] = answer
        return result


class Results:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def pod_asked(self, result: str) -> None:
        self.seen.append(result)


class Bench:
    """Readings with pods below and a queue above."""

    def __init__(self) -> None:
        self.pods, self.results = Pods(), Results()
        self.woken: list[float] = []
        self.priorities: list[Priority] = []
        self.readings = Readings(self.pods, virtual_now, self._wake, self.results)

    def _wake(self, key: tuple[str, str], priority: Priority) -> None:
        assert key == KEY
        self.priorities.append(priority)
        self.woken.append(round(asyncio.get_running_loop().time(), 3))

    def of(self, number: int) -> Reading | None:
        return self.readings.of(KEY).get(f"uid-{number}")


def drive(scenario: Callable[[Bench], Awaitable[None]]) -> Bench:
    bench = Bench()

    async def main() -> None:
        task = asyncio.create_task(bench.readings.run())
        await scenario(bench)
        assert not task.done(), task
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main())
    return bench


def test_a_pod_is_asked_at_once_and_again_while_it_is_named() -> None:
    async def scenario(bench: Bench) -> None:
        bench.readings.ask(KEY, uids(1))
        assert bench.of(1) is None
        await pass_time(2.5)
        assert bench.of(1) == Reading(EPOCH + timedelta(seconds=2), 1)
        bench.readings.ask(KEY, uids(1))
        await pass_time(1.0)
        bench.readings.ask(KEY, {})
        assert bench.of(1) is None
        await pass_time(60.0)

    assert drive(scenario).pods.asked == [(float(second), "uid-1") for second in range(4)]


def test_a_reading_is_as_old_as_its_question() -> None:
    async def scenario(bench: Bench) -> None:
        bench.pods.takes_s = lambda uid: 0.9
        bench.readings.ask(KEY, uids(1))
        await until(lambda: bench.of(1), step_s=0.01)
        assert bench.of(1) == Reading(EPOCH, 1)

    drive(scenario)


def test_what_a_pod_said_before_is_forgotten_when_it_is_named_anew() -> None:
    async def scenario(bench: Bench) -> None:
        bench.readings.ask(KEY, uids(1))
        await until(lambda: bench.of(1))
        bench.readings.forget(KEY)
        bench.readings.ask(KEY, uids(1, 2))
        assert bench.readings.of(KEY) == {}
        await until(lambda: len(bench.readings.of(KEY)) == 2)

    drive(scenario)


def test_a_pod_whose_label_was_changed_belongs_to_who_named_it_last() -> None:
    other = ("default", "other")

    async def scenario(bench: Bench) -> None:
        bench.readings.ask(other, uids(1))
        bench.readings.ask(KEY, uids(1))
        bench.readings.ask(other, {})
        bench.readings.forget(other)
        await until(lambda: bench.of(1))
        assert bench.readings.of(other) == {}
        bench.readings.forget(KEY)
        bench.readings.forget(KEY)

    drive(scenario)


def test_an_answer_to_a_question_that_nobody_asks_any_more_is_dropped() -> None:
    async def scenario(bench: Bench) -> None:
        bench.pods.takes_s = lambda uid: 0.5
        bench.readings.ask(KEY, uids(1))
        await pass_time(0.25)
        bench.readings.forget(KEY)
        await pass_time(10.0)
        assert bench.readings.of(KEY) == {}

    assert drive(scenario).woken == []


def test_since_when_a_pod_is_silent_is_kept_until_it_answers() -> None:
    silent = PodAnswer(None, "no answer within 1 s")

    async def scenario(bench: Bench) -> None:
        bench.pods.answers = lambda uid: silent
        bench.readings.ask(KEY, uids(1))
        await pass_time(11.0)
        reading = bench.of(1)
        assert reading is not None
        assert (reading.num_in_flight, reading.trouble) == (None, "no answer within 1 s")
        assert (reading.silent_since, reading.read_at) == (EPOCH, EPOCH + timedelta(seconds=10))
        bench.pods.answers = lambda uid: PodAnswer(b'{"in_flight": 0}')
        await pass_time(4.5)
        answered = bench.of(1)
        assert answered is not None
        assert (answered.num_in_flight, answered.silent_since) == (0, None)

    bench = drive(scenario)
    assert bench.pods.asked == [(second, "uid-1") for second in (0.0, 5.0, 10.0, 15.0)]
    assert bench.woken == [0.0, 5.0, 10.0, 15.0]
    assert bench.results.seen == ["silent", "silent", "silent", "answered"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(PodAnswer(b"<html>"), id="another-page"),
        pytest.param(PodAnswer(b"[" * 200_000), id="deeper-than-a-parser-goes"),
        pytest.param(KeyError("x"), id="a-fault-of-ours"),
    ],
)
def test_no_answer_of_a_pod_ends_the_tasks(answer: PodAnswer | Exception) -> None:
    async def scenario(bench: Bench) -> None:
        bench.pods.answers = lambda uid: answer if uid == "uid-1" else PodAnswer(b'{"in_flight": 0}')
        bench.readings.ask(KEY, uids(1, 2))
        await pass_time(6.0)
        broken, other = bench.of(1), bench.of(2)
        assert broken is not None
        assert other is not None
        assert (broken.num_in_flight, other.num_in_flight) == (None, 0)
        assert broken.trouble

    assert {"answered"} < set(drive(scenario).results.seen)


def test_a_pod_without_an_address_is_silent() -> None:
    async def scenario(bench: Bench) -> None:
        bench.readings.ask(KEY, {"x": {"metadata": {"uid": "x"}, "status": {}}})
        await until(lambda: bench.readings.of(KEY))
        assert bench.readings.of(KEY)["x"].trouble == "it has no address"

    drive(scenario)


def test_silent_pods_hold_up_only_one_another() -> None:
    async def scenario(bench: Bench) -> None:
        bench.pods.takes_s = lambda uid: 0.002 if uid == "uid-0" else 1.0
        bench.pods.answers = lambda uid: PodAnswer(
            *((b'{"in_flight": 1}',) if uid == "uid-0" else (None, "?"))
        )
        bench.readings.ask(KEY, uids(*range(500)))
        await pass_time(60.0)
        bench.pods.asked.clear()
        await pass_time(60.0)

    bench = drive(scenario)
    assert bench.pods.most_at_once <= 2 * MAX_AT_ONCE
    counts = {uid: sum(other == uid for _, other in bench.pods.asked) for uid in uids(*range(500))}
    assert counts["uid-0"] >= 59
    assert min(counts.values()) >= 60 * MAX_AT_ONCE // 500


def test_a_busy_pod_wakes_nobody_but_an_empty_one_does() -> None:
    async def scenario(bench: Bench) -> None:
        bench.readings.ask(KEY, uids(1))
        await pass_time(10.5)
        assert bench.woken == [0.0]
        bench.pods.answers = lambda uid: PodAnswer(b'{"in_flight": 0}')
        await pass_time(3.0)
        assert bench.woken == [0.0, 11.0, 12.0, 13.0]

    drive(scenario)


def test_that_pods_are_silent_waits_behind_what_happened() -> None:
    async def scenario(bench: Bench) -> None:
        bench.pods.answers = lambda uid: PodAnswer(b'{"in_flight": 0}' if uid == "uid-1" else None)
        bench.readings.ask(KEY, uids(1))
        await until(lambda: bench.of(1))
        bench.readings.ask(KEY, uids(1, 2))
        await until(lambda: bench.of(2))

    assert drive(scenario).priorities == [Priority.HIGH, Priority.LOW]


READINGS = st.builds(Reading, st.just(EPOCH), st.sampled_from([None, 0, 1, 2]), st.sampled_from(["", "a"]))


@given(before=READINGS, now=READINGS)
def test_only_that_a_busy_pod_is_still_busy_is_no_news(before: Reading, now: Reading) -> None:
    both_busy = all(reading.num_in_flight for reading in (before, now))
    assert is_news(before, now) == (not both_busy)
    assert is_news(None, now)


def test_what_was_named_before_it_runs_is_asked_and_after_a_restart_again() -> None:
    bench = Bench()

    async def main() -> None:
        bench.readings.ask(KEY, uids(1))
        for _ in range(2):
            task = asyncio.create_task(bench.readings.run())
            await pass_time(0.5)
            task.cancel()
            await asyncio.wait([task])

    run_virtual(main())
    assert bench.pods.asked == [(0.0, "uid-1"), (0.5, "uid-1")]


def is_draining(one: dict[str, Any]) -> bool:
    return bool(one["metadata"]["labels"][labels.SERVING] == "false")


def has_pod(world: World, name: str) -> bool:
    return any(pod.startswith(f"{name}-") for pod in world.pod_names())


def test_however_many_pods_are_silent_a_new_model_gets_its_pod_at_once() -> None:
    async def scenario(world: World) -> None:
        names = [f"silent-{number}" for number in range(NUM_SILENT)]
        world.kubelet.unreachable = lambda name: "no answer within 1 s" if name.startswith("silent") else ""
        world.kubelet.answer_s = lambda: 1.0
        for name in names:
            world.apply(name, replicas=1, pod={"terminationGracePeriodSeconds": 600})
        await until(lambda: all(map(world.is_ready, names)), 120.0)
        for name in names:
            world.apply(name, replicas=0)
        await until(lambda: sum(map(is_draining, world.pods())) == NUM_SILENT)
        for name in ("first", "second", "third"):
            await pass_time(2.1)
            world.apply(name)
            await until(partial(has_pod, world, name), 0.1, step_s=0.005)
        await until(lambda: all(world.condition("DrainUnobserved", name) for name in names), 30.0)
        assert not [task for task in world.kubelet.asked_by if task.startswith("worker")]
        assert len(world.kubelet.asked_by) >= NUM_SILENT

    world = play(scenario)
    assert (
        len([event for event in everything(world.api, "events") if event["reason"] == "DrainUnobserved"])
        == NUM_SILENT
    )
