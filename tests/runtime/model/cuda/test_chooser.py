"""Candidates are measured within bounds, and whatever goes wrong costs no start: the default is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stoker_runtime.model.cuda.choices import Choice, Decision
from stoker_runtime.model.cuda.chooser import Chooser, Way, difference
from stoker_runtime.model.cuda.stopwatch import (
    Limits,
    Run,
    _EventStopwatch,
    median_seconds,
    stopwatch_on,
)

CHOICE = Choice("product", "8 x 8", ("plain", "fast", "slow"))


@dataclass
class FakeDevice:
    """Runs things in no time and says that each took what its name takes.

    Args:
        seconds: of each candidate; one after the other, the last one again and again.
    """

    seconds: dict[str, list[float]]
    now: float = 0.0
    runs: list[str] = field(default_factory=list)

    def way(self, name: str, result: Callable[[], Tensor] = lambda: torch.ones(2, 3)) -> Way:
        def run() -> Tensor:
            self.runs.append(name)
            return result()

        return run

    def clock(self) -> float:
        return self.now

    def stopwatch(self, run: Run) -> float:
        run()
        times = self.seconds[self.runs[-1]]
        seconds = times.pop(0) if len(times) > 1 else times[0]
        self.now += seconds
        return seconds

    def chooser(self, **settings: Any) -> Chooser:
        return Chooser(self.stopwatch, clock=self.clock, **settings)


def three(device: FakeDevice, **results: Callable[[], Tensor]) -> Callable[[], Mapping[str, Way]]:
    def prepare() -> Mapping[str, Way]:
        ones = lambda: torch.ones(2, 3)  # noqa: E731
        return {name: device.way(name, results.get(name, ones)) for name in CHOICE.candidates}

    return prepare


def raises(error: Exception) -> Callable[[], Tensor]:
    def run() -> Tensor:
        raise error

    return run


def test_the_fastest_is_taken() -> None:
    device = FakeDevice({"plain": [2.0], "fast": [1.0], "slow": [3.0]})
    chooser = device.chooser()
    assert chooser.choose(CHOICE, three(device), 0.0) == "fast"
    decision = Decision(CHOICE, "fast", {"plain": 2.0, "fast": 1.0, "slow": 3.0})
    assert chooser.decisions == chooser.measured == [decision]


def test_each_runs_once_before_it_is_timed() -> None:
    """The first run compiles."""
    device = FakeDevice({name: [0.1] for name in CHOICE.candidates})
    device.chooser(limits=Limits(most_repeats=3)).choose(CHOICE, three(device), 0.0)
    assert device.runs == ["plain"] * 4 + ["fast"] * 4 + ["slow"] * 4


def test_what_is_known_is_not_measured() -> None:
    known = Decision(CHOICE, "fast", {"plain": 2.0, "fast": 1.0})
    device = FakeDevice({})
    chooser = device.chooser(known=[known])

    def prepare() -> Mapping[str, Way]:
        raise AssertionError("nothing is measured")

    assert chooser.choose(CHOICE, prepare, 0.0) == "fast"
    assert (chooser.decisions, chooser.measured, chooser.known) == ([known], [], [CHOICE])


def test_other_shapes_are_not_known() -> None:
    known = Decision(Choice("product", "9 x 9", CHOICE.candidates), "fast", {"plain": 2.0, "fast": 1.0})
    device = FakeDevice({name: [1.0] for name in CHOICE.candidates})
    chooser = device.chooser(known=[known])
    assert chooser.choose(CHOICE, three(device), 0.0) == "plain"
    assert len(chooser.measured) == 1


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        pytest.param(lambda: torch.full((2, 3), 1.2), "differs from plain by 0.2", id="wrong"),
        pytest.param(lambda: torch.full((2, 3), float("nan")), "differs from plain by nan", id="nan"),
        pytest.param(
            raises(RuntimeError("no such kernel\nmore")), "RuntimeError: no such kernel", id="raises"
        ),
        pytest.param(lambda: torch.ones(3, 3), "RuntimeError: The size of tensor a", id="shape"),
    ],
)
def test_a_candidate_that_is_wrong_is_out(
    result: Callable[[], Tensor], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice({"plain": [2.0], "fast": [1.0], "slow": [3.0]})
    chooser = device.chooser()
    with caplog.at_level(logging.INFO):
        assert chooser.choose(CHOICE, three(device, fast=result), 0.1) == "plain"
    (decision,) = chooser.measured
    assert decision.excluded["fast"].startswith(reason)
    assert f"product: fast is out: {reason}" in caplog.text


def test_a_candidate_that_computes_nothing_finds_nothing_computed() -> None:
    room = torch.empty(2, 3)
    device = FakeDevice({"plain": [2.0], "fast": [1.0], "slow": [3.0]})
    results = {"plain": lambda: room.fill_(1.0), "fast": lambda: room, "slow": lambda: room.fill_(1.0)}
    chooser = device.chooser()
    assert chooser.choose(CHOICE, three(device, **results), 0.1) == "plain"
    assert list(chooser.measured[0].excluded) == ["fast"]


def test_without_memory_the_default_is_taken_and_another_start_tries_again() -> None:
    out_of_memory = raises(torch.OutOfMemoryError("CUDA out of memory"))
    device = FakeDevice({"plain": [2.0], "fast": [1.0], "slow": [3.0]})
    chooser = device.chooser()
    assert chooser.choose(CHOICE, three(device, plain=out_of_memory), 0.1) == "plain"
    assert chooser.decisions == [Decision(CHOICE, "plain", {}, {"plain": "out of memory"})]
    assert chooser.choose(CHOICE, three(device, fast=out_of_memory), 0.1) == "plain"

    def prepare() -> Mapping[str, Way]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert chooser.choose(CHOICE, prepare, 0.1) == "plain"
    assert not chooser.measured


def test_what_is_left_when_the_time_is_over_is_not_measured() -> None:
    device = FakeDevice({"plain": [2.0], "fast": [1.0], "slow": [3.0]})
    chooser = device.chooser(most_seconds=3.0, limits=Limits(1, 9.0))
    assert chooser.choose(CHOICE, three(device), 0.1) == "fast"
    assert chooser.decisions[0].excluded == {"slow": "no time was left to measure it"}
    assert chooser.choose(Choice("other", "", ("x", "y")), three(device), 0.1) == "x"
    assert device.runs == ["plain"] * 2 + ["fast"] * 2
    assert not chooser.measured


@given(
    times=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30),
    most_repeats=st.integers(1, 9),
    most_seconds=st.floats(0.0, 3.0),
)
def test_repeats_are_bounded_by_number_and_time(
    times: list[float], most_repeats: int, most_seconds: float
) -> None:
    device = FakeDevice({"plain": list(times)})
    limits = Limits(most_repeats, most_seconds)
    median = median_seconds(device.way("plain"), device.stopwatch, device.clock, limits)
    taken = (times + times[-1:] * most_repeats)[: len(device.runs)]
    assert 1 <= len(taken) <= most_repeats
    assert min(taken) <= median <= max(taken)
    assert len(taken) == 1 or sum(taken[:-1]) <= most_seconds + 1e-9
    assert len(taken) == most_repeats or sum(taken) >= most_seconds - 1e-9


@given(
    rows=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    away=st.floats(0.01, 0.5),
)
def test_differences_are_relative_to_each_row(rows: list[list[float]], away: float) -> None:
    expected = torch.tensor(rows)
    assert difference(expected.clone(), expected) == 0.0
    largest = expected.abs().amax(dim=-1, keepdim=True)
    if float(largest.min()) > 1e-3:
        found = expected.clone()
        found[-1, 0] += away * largest[-1, 0]
        assert difference(found, expected) == pytest.approx(away, rel=1e-2)


def test_a_row_that_is_not_zero_where_it_should_be_is_far_away() -> None:
    assert difference(torch.tensor([[1e-3, 0.0]]), torch.zeros(1, 2)) > 1e30
    assert difference(torch.zeros(1, 2), torch.zeros(1, 2)) == 0.0


def test_a_stopwatch_measures_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0

    def run() -> None:
        nonlocal now_s
        now_s += 0.25

    monkeypatch.setattr("stoker_runtime.model.cuda.stopwatch.time.perf_counter", lambda: now_s)
    with stopwatch_on(torch.device("cpu")) as stopwatch:
        assert stopwatch(run) == 0.25


def test_events_surround_what_runs_after_the_cache_was_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for a device."""
    done = list[str]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 2.5  # milliseconds

    def zero(tensor: Tensor) -> Tensor:
        done.append(f"overwrite {tensor.nbytes}")
        return tensor

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=100))
    monkeypatch.setattr(Tensor, "zero_", zero)
    stopwatch = _EventStopwatch(torch.device("cpu"))
    assert stopwatch(lambda: done.append("run")) == 0.0025
    assert done == ["overwrite 200"] * 8 + ["record", "run", "record", "wait"]


@pytest.mark.gpu
def test_a_stopwatch_gives_its_memory_back(device: torch.device) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    tensor = torch.zeros(1 << 20, device=device)
    with stopwatch_on(device) as stopwatch:
        assert 0 < stopwatch(tensor.zero_) < 0.1
        assert torch.cuda.memory_reserved(device) > before + tensor.nbytes
    del tensor
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) == before
