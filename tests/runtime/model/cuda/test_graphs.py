"""Recording, with stand-ins for what only a device has: which streams are used, and what a failure leaves."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stoker_runtime.model.cuda.graphs import Recorder

POOL = (0, 7)
CUDA = torch.device("cuda", 0)


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device_index = device.index
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Cuda:
    """The part of torch.cuda that a Recorder uses; what is recorded with a failure is not ended, as there."""

    def __init__(self) -> None:
        self.main = self.current = Stream(CUDA)
        self.underway: list[tuple[int, int]] = []
        self.num_users = 0  # of the pool
        self.recorded_on: list[Stream] = []

    def graph_pool_handle(self) -> tuple[int, int]:
        return POOL

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: tuple[int, int], stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.underway.append(pool)
        self.num_users += 1
        self.recorded_on.append(stream)
        try:
            yield
        except ValueError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        except OSError:
            self._end(pool, before)
            self.num_users -= 1  # the graph is gone at once
            raise
        self._end(pool, before)

    def _end(self, pool: tuple[int, int], before: Stream) -> None:
        self.underway.remove(pool)
        self.current = before

    def end_allocate(self, device_index: int, pool: tuple[int, int]) -> None:
        if pool not in self.underway:
            raise RuntimeError("not currently recording")
        self.underway.remove(pool)

    def release(self, device_index: int, pool: tuple[int, int]) -> None:
        self.num_users -= 1


class Graph:
    def replay(self) -> None: ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("graph_pool_handle", "current_stream", "set_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocate, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
    return cuda


def test_all_runs_of_all_recordings_are_on_one_stream(cuda: Cuda) -> None:
    """PyTorch keeps a workspace of cuBLAS for each stream that it ever ran on."""
    recorder, streams = Recorder(CUDA), list[Stream]()
    for _ in range(3):
        recorder.record(lambda: streams.append(cuda.current))
    assert len(streams) == 6
    assert set(streams) == set(cuda.recorded_on)
    assert len(set(streams)) == 1
    aside = streams[0]
    assert aside is not cuda.main
    assert aside.waited_for == [cuda.main] * 3
    assert cuda.main.waited_for == [aside] * 3
    assert cuda.current is cuda.main


@pytest.mark.parametrize("was_enabled", [True, False])
def test_nothing_is_collected_while_a_step_is_recorded(cuda: Cuda, was_enabled: bool) -> None:
    seen = []
    try:
        if not was_enabled:
            gc.disable()
        Recorder(CUDA).record(lambda: seen.append(gc.isenabled()))
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
    assert seen == [was_enabled, False]


@pytest.mark.parametrize("error", [ValueError("breaks the recording"), OSError("does not")])
def test_a_recording_that_fails_leaves_nothing_behind(cuda: Cuda, error: Exception) -> None:
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise error

    with pytest.raises((RuntimeError, OSError)):
        Recorder(CUDA).record(run)
    assert cuda.current is cuda.main
    assert not cuda.underway
    assert cuda.num_users == 0
    assert gc.isenabled()


def test_on_a_cpu_the_function_takes_the_recordings_place() -> None:
    runs: list[int] = []
    replay = Recorder(torch.device("cpu")).record(lambda: runs.append(1))
    assert not runs
    replay()
    assert runs == [1]
