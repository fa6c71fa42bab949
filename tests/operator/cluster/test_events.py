from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakeapi.client import everything, put
from fakeapi.core import FakeApi
from fakeapi.faults import Fault, no_fault
from virtual_time import run_virtual

from stoker_operator.cluster import events as module
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.status import Event

STARTED = Event("Normal", "PodCreated", "CreatePod", "created pod m-1")
FAILED = Event("Warning", "OutOfMemory", "Observe", "x" * 2000)


class World:
    def __init__(self) -> None:
        self.api = FakeApi()
        self.model = put(
            self.api, "modeldeployments", {"metadata": {"name": "m", "namespace": "ns"}, "spec": {}}
        )
        self.dropped = 0
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.recorder = self.make_recorder()
        self.now += timedelta(hours=1)

    def make_recorder(self) -> EventRecorder:
        def drop() -> None:
            self.dropped += 1

        return EventRecorder(KubeClient(self.api), lambda: self.now, "pod-1", drop)

    def restart(self) -> None:
        """Another process, which remembers nothing."""
        self.recorder = self.make_recorder()

    def record(self, event: Event) -> None:
        run_virtual(self.recorder.record(self.model, event))

    @property
    def events(self) -> list[dict[str, Any]]:
        return everything(self.api, "events")


def test_the_first_time_is_an_event_and_every_further_time_a_count() -> None:
    world = World()
    for _ in range(3):
        world.record(STARTED)
        world.now += timedelta(minutes=5)
    (event,) = world.events
    assert event["regarding"]["uid"] == world.model["metadata"]["uid"]
    assert (event["reason"], event["note"], event["type"]) == ("PodCreated", "created pod m-1", "Normal")
    assert event["eventTime"] == "2026-01-01T01:00:00.000000Z"
    assert event["series"] == {"count": 3, "lastObservedTime": "2026-01-01T01:10:00.000000Z"}


def test_what_happens_again_and_again_is_counted_in_memory_and_written_now_and_then() -> None:
    world = World()
    for _ in range(600):
        world.record(STARTED)
        world.now += timedelta(seconds=1)
    assert [event["series"]["count"] for event in world.events] == [302]
    assert len(world.api.writes) == 3, "the first, the second, and one five minutes later"


def test_different_happenings_are_different_events_and_long_notes_are_cut() -> None:
    world = World()
    world.record(STARTED)
    world.record(FAILED)
    assert sorted(event["reason"] for event in world.events) == ["OutOfMemory", "PodCreated"]
    assert max(len(event["note"]) for event in world.events) == 1024


def test_a_restarted_operator_goes_on_counting() -> None:
    world = World()
    world.record(STARTED)
    world.record(STARTED)
    world.restart()
    num_writes = len(world.api.writes)
    world.record(STARTED)
    assert len(world.api.writes) == num_writes, "what an operator tells again after its start is no news"
    world.now += timedelta(minutes=5)
    world.record(STARTED)
    assert [event["series"]["count"] for event in world.events] == [4]


@pytest.mark.parametrize("age_s", [0, 3600])
def test_what_tells_nothing_new_is_written_a_few_times_a_minute_however_much_happens_again(
    age_s: int,
) -> None:
    world = World()
    told = [replace(STARTED, note=f"note {number}") for number in range(20)]
    for event in told:
        world.record(event)
    num_told = len(world.api.writes)
    assert num_told == len(world.events) == 20, "news is written at once"
    world.restart()
    world.now += timedelta(seconds=age_s)
    for event in 3 * told:
        world.record(event)
        world.now += timedelta(seconds=1)
    num_again = len(world.api.writes) - num_told
    assert num_again <= module.MAX_FRUITLESS + 60 / module.REFILL_S
    assert world.dropped == 0


def test_events_that_the_api_refuses_are_tried_a_few_times_a_minute() -> None:
    world = World()
    world.restart()
    world.api.injector = lambda call: Fault.FORBIDDEN if call.is_write else None
    for number in range(120):
        world.record(replace(STARTED, note=f"note {number}"))
        world.now += timedelta(seconds=0.5)
    assert 1 <= len(world.api.writes) <= 1 + 60 / module.REFILL_S
    assert world.dropped == 120
    world.api.injector = no_fault
    world.now += timedelta(seconds=module.REFILL_S)
    world.record(STARTED)
    assert [event["note"] for event in world.events] == [STARTED.note]


def test_a_long_note_is_cut_at_what_the_api_server_counts() -> None:
    world = World()
    world.record(replace(STARTED, note="ü" * 1000))
    assert [event["note"] for event in world.events] == ["ü" * 512], "it counts bytes, and refuses 1,025"


def test_an_event_that_expired_is_written_anew() -> None:
    world = World()
    world.record(STARTED)
    world.api.storage.delete("events", ("ns", world.events[0]["metadata"]["name"]))
    world.record(STARTED)
    assert ["series" in event for event in world.events] == [False]


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR, Fault.THROTTLED, Fault.CONFLICT, Fault.RESET_BEFORE])
def test_a_failure_drops_the_event_visibly_and_raises_nothing(fault: Fault) -> None:
    world = World()
    world.api.injector = lambda call: fault if call.is_write else None
    world.record(STARTED)
    assert (world.dropped, world.events) == (1, [])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    world = World()
    for number in range(5):
        world.record(Event("Normal", "R", "A", f"note {number}"))
        world.record(Event("Normal", "R", "A", f"note {number}"))
    assert len(world.recorder._counts) == 2
    assert len(world.events) == 5
