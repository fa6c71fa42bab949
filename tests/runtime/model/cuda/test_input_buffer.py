"""What a step's integers travel through, with copies that happen as late as a device may do them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stoker_runtime.model.cuda import input_buffer
from stoker_runtime.model.cuda.input_buffer import InputBuffer

SIZES = {"token_ids": 3, "changes": 4}


class Stream:
    """Copies and events that wait until somebody waits for an event."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Tensor, Tensor] | Event] = []

    def run_to(self, event: Event) -> None:
        while event in self.waiting:
            work = self.waiting.pop(0)
            if not isinstance(work, Event):
                work[0].copy_(work[1])


class Event:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def record(self) -> None:
        self._stream.waiting.append(self)

    def synchronize(self) -> None:
        self._stream.run_to(self)


class DeviceTensor:
    """A tensor on a device as far as the buffer uses it; what it is told to copy it reads later."""

    def __init__(self, stream: Stream, content: Tensor) -> None:
        self._stream, self.content = stream, content

    def __getitem__(self, place: slice) -> DeviceTensor:
        return DeviceTensor(self._stream, self.content[place])

    def copy_(self, source: Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self._stream.waiting.append((self.content, source))


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()

    def zeros(size: int, dtype: torch.dtype, pin_memory: bool = False, device: Any = None) -> Any:
        content = torch.zeros(size, dtype=dtype)
        return content if device is None else DeviceTensor(stream, content)

    fake = SimpleNamespace(zeros=zeros, int32=torch.int32, cuda=SimpleNamespace(Event=lambda: Event(stream)))
    monkeypatch.setattr(input_buffer, "torch", fake)
    return stream


def fields(*token_ids: int) -> dict[str, Any]:
    return {"token_ids": np.array(token_ids, dtype=np.int32), "changes": np.array([7, 8], dtype=np.int32)}


def test_a_step_is_not_written_over_the_one_before_while_that_is_copied(stream: Stream) -> None:
    buffer = InputBuffer(64, torch.device("cuda"))
    found: Any = buffer.views(SIZES)["token_ids"]
    buffer.upload(fields(1, 2, 3), SIZES)
    assert found.content.tolist() == [0, 0, 0]  # the device is busy with another step
    buffer.upload(fields(4, 5, 6), SIZES)
    assert found.content.tolist() == [1, 2, 3]
    assert len(stream.waiting) == 2
    last = stream.waiting[-1]
    assert isinstance(last, Event)
    stream.run_to(last)
    assert found.content.tolist() == [4, 5, 6]
