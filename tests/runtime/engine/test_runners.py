"""Who takes the engine's steps, and what happens to those in flight."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import msgspec
import pytest
from engine_builders import DEADLINE_S
from runtime_builders import FakeRunner, make_engine_config, make_request

from stoker_runtime.config import AsyncScheduling
from stoker_runtime.core.step import StepPlan, StepResult
from stoker_runtime.engine.engine import Engine
from stoker_runtime.engine.runners import InThread, InTurn, as_async
from stoker_runtime.messages import EngineReady


class DeviceRunner(FakeRunner):
    """An AsyncRunner: it keeps plans, as a device does, until their results are asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.submitted: deque[StepPlan] = deque()
        self.most_submitted = 0
        self._last = StepResult()

    def ready(self) -> EngineReady:
        return msgspec.structs.replace(super().ready(), async_scheduling=True)

    def submit(self, plan: StepPlan) -> None:
        self.submitted.append(plan)
        self.most_submitted = max(self.most_submitted, len(self.submitted))

    def collect(self) -> StepResult:
        self._last = self.step(self.submitted.popleft().resolved(self._last))
        return self._last


@pytest.mark.parametrize(
    ("scheduling", "plain", "device"),
    [
        pytest.param("auto", (InTurn, 1), (DeviceRunner, 2), id="auto"),
        pytest.param("on", (InThread, 2), (DeviceRunner, 2), id="on"),
        pytest.param("off", (InTurn, 1), (InTurn, 1), id="off"),
    ],
)
def test_who_takes_the_steps(
    scheduling: AsyncScheduling, plain: tuple[type, int], device: tuple[type, int]
) -> None:
    for runner, expected in ((FakeRunner(), plain), (DeviceRunner(), device)):
        found, most = as_async(runner, runner.ready(), scheduling)
        assert (type(found), most) == expected


def tokens(engine: Engine) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index in range(5):
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": index, "max_tokens": 4 + index}
        engine.add(make_request([index, 3], request_id=str(index), **sampling))
    while engine.has_work:
        for output in engine.step().outputs:
            found.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.check()
    return found


def test_a_runner_that_takes_two_steps_gets_two() -> None:
    runner = DeviceRunner()
    found = tokens(Engine(runner, make_engine_config(), hash_key=b"k" * 16))
    assert runner.most_submitted == 2
    assert not runner.submitted
    assert found == tokens(Engine(FakeRunner(), make_engine_config(), hash_key=b"k" * 16))


def test_a_step_is_planned_while_the_one_before_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = threading.Event()
    runner = FakeRunner()
    runner.on_step = lambda _: _until(planned) if len(runner.plans) == 1 else None
    engine = Engine(runner, make_engine_config(async_scheduling="on"), hash_key=b"k" * 16)
    submit = InThread.submit

    def spy(self: InThread, plan: StepPlan) -> None:
        submit(self, plan)
        if engine.scheduler.num_in_flight == 2:
            planned.set()

    monkeypatch.setattr(InThread, "submit", spy)
    engine.add(make_request(request_id="a", max_tokens=3))
    assert [output.request_id for output in engine.step().outputs] == ["a"]
    assert engine.scheduler.num_in_flight == 1


def _until(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S), "nobody planned the next step"


def test_what_a_step_raises_comes_out_where_its_result_is_asked_for() -> None:
    def fail(_: StepPlan) -> None:
        raise RuntimeError("the device fell off")

    runner = FakeRunner(on_step=fail)
    both: list[AsyncScheduling] = ["on", "off"]
    for scheduling in both:
        engine = Engine(runner, make_engine_config(async_scheduling=scheduling), hash_key=b"k" * 16)
        engine.add(make_request())
        with pytest.raises(RuntimeError, match="fell off"):
            engine.step()
