"""One int32 buffer on the host and one on the device: a step's integers travel in a single copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stoker_runtime.model.cuda.step_layout import Fields, offsets


class InputBuffer:
    """Memory of a fixed size at a fixed address, so that CUDA graphs can read from it.

    Args:
        capacity: integers that it holds.
        device: where they go.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.capacity = capacity
        self._host = torch.zeros(capacity, dtype=torch.int32, pin_memory=is_cuda)
        self._array = self._host.numpy()
        self._device = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def views(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the device's view of each field, for fields of these sizes in this order."""
        starts = offsets(sizes)
        return {name: self._device[starts[name] : starts[name] + size] for name, size in sizes.items()}

    def upload(self, fields: Fields, sizes: Mapping[str, int]) -> None:
        """Copy fields to the device.

        Args:
            fields: one for each size, not longer.
            sizes: reserved for each field, as for `views`; the last one may be shorter at no cost.
        """
        if self._copied is not None:
            self._copied.synchronize()  # the host's memory is read until the last copy is over
        starts = offsets(sizes)
        end = 0
        for name in sizes:
            end = starts[name] + len(fields[name])
            self._array[starts[name] : end] = fields[name]
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
