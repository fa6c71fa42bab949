"""Steps that are recorded: where they read, where they leave what they compute, and what that costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.model.cuda.graphs import Recorder, Run
from stoker_runtime.model.cuda.input_buffer import InputBuffer
from stoker_runtime.model.cuda.rooms import Room, Rooms
from stoker_runtime.model.cuda.step_layout import largest_fields, offsets
from stoker_runtime.model.kv_cache import KVCache

MIB = 1024**2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What recordings leave behind, in memory of its own because they share theirs.

    Shapes:
        logits [rows of the largest step of decodes alone, V] float32
        normed [rows of the largest step with chunks, E]: what the logits of any of its rows come from
    """

    logits: Tensor
    normed: Tensor


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recorded steps, for one cache.

    Args:
        cache: the only one that they read and write.
        rooms: of all of them.
        buffer: where they read the step.
        fields: sizes of the buffer's fields, by room.
        replays: by room.
        outputs: where they leave their results.
    """

    cache: KVCache
    rooms: Rooms
    buffer: InputBuffer
    fields: dict[Room, dict[str, int]]
    replays: dict[Room, Run]
    outputs: Outputs


def make_recordings(
    cache: KVCache,
    rooms: Rooms,
    max_splits: int,
    max_blocks: int,
    outputs: Outputs,
    make_run: Callable[[Room, dict[str, Tensor]], Run],
) -> Recordings:
    """Record all steps.

    Args:
        cache: see Recordings.
        rooms: likewise.
        max_splits: of one context.
        max_blocks: of one request.
        outputs: where runs leave their results.
        make_run: takes a room and the device's view of each field, returns what computes such a step.
    """
    device, started_s = outputs.logits.device, time.monotonic()
    free_bytes = _free_bytes(device)
    # The largest first, steps with chunks before the others: what follows fits into the memory these took.
    ordered = (*reversed(rooms.mixed), *reversed(rooms.decodes))
    fields = {room: largest_fields(room, max_splits, max_blocks) for room in ordered}
    buffer = InputBuffer(max(offsets(sizes)[""] for sizes in fields.values()), device)
    recorder = Recorder(device)
    replays = {room: recorder.record(make_run(room, buffer.views(fields[room]))) for room in ordered}
    logger.info(
        "recorded %d steps of up to %d decodes and %d of up to %d tokens with prompts: %.1f s, %.0f MiB",
        len(rooms.decodes),
        rooms.max_requests,
        len(rooms.mixed),
        max((room.rows for room in rooms.mixed), default=0),
        time.monotonic() - started_s,
        (free_bytes - _free_bytes(device)) / MIB,
    )
    return Recordings(cache, rooms, buffer, fields, replays, outputs)


def _free_bytes(device: torch.device) -> int:
    """Return what the device has left; 0 where nothing is recorded."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
