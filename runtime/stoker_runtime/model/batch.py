"""One StepPlan as tensors: made once per step, read by every layer.

Requests are put in an order that suits attention: those that compute one token first, by context length,
cut into groups of similar length that are padded together; then each longer chunk on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest, StepPlan

# A group is cut where padding would add more than a quarter, but not below this many slots of waste in all.
_MAX_PADDING = 1.25
_FREE_PADDING_SLOTS = 512


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Requests that compute one token each, attended in one padded call.

    Args:
        rows: their consecutive rows of the step's tokens.
        slots: cache slots of what each token sees, [B * C], padded with one of the request's own slots, so
            that no request ever reads what another one stored.
        mask: 0 for context, -inf for padding, [B, 1, 1, C]; None when nothing is padded.
    """

    rows: slice
    slots: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several tokens of one request.

    Args:
        rows: their consecutive rows of the step's tokens.
        slots: cache slots of what any of them sees, [C]; None when the chunk is the whole context.
        mask: 0 or -inf, [T, C]; None for a plain causal one.
    """

    rows: slice
    slots: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Reach:
    """What each token of a step attends to, in the layers that share a window. Rows are in step order."""

    decode_groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tensors.

    Args:
        reaches: by window.
    Shapes:
        token_ids, positions, slot_mapping [T]; sampled_rows [positions whose logits are wanted], see
            StepPlan.logit_rows
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    reaches: Mapping[int | None, Reach]
    sampled_rows: Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    """How slots and masks are made."""

    block_size: int
    window: int | None
    dtype: torch.dtype
    device: torch.device

    def first_seen(self, position: int) -> int:
        """The first position that the token at `position` attends to."""
        return 0 if self.window is None else max(0, position + 1 - self.window)


def pack_batch(
    plan: StepPlan,
    block_size: int,
    windows: Sequence[int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """Turn a plan into tensors.

    Args:
        plan: at least one request.
        block_size: tokens per KV block.
        windows: of the model's layers, each once.
        dtype: of the attention masks: the queries' dtype.
        device: where the tensors go.
    """
    decodes = sorted((r for r in plan.requests if len(r.token_ids) == 1), key=_context)
    longer = [r for r in plan.requests if len(r.token_ids) > 1]
    token_ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    first_rows: dict[str, int] = {}
    for request in (*decodes, *longer):
        span = range(request.num_computed_tokens, _context(request))
        first_rows[request.request_id] = len(token_ids)
        token_ids += request.token_ids
        positions += span
        slot_mapping += [request.block_ids[p // block_size] * block_size + p % block_size for p in span]

    layouts = {window: _Layout(block_size, window, dtype, device) for window in windows}
    return Batch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slot_mapping=torch.tensor(slot_mapping, device=device),
        reaches={window: _reach(decodes, longer, layout) for window, layout in layouts.items()},
        sampled_rows=torch.tensor(
            plan.logit_rows(first_rows[request.request_id] for request in plan.requests),
            dtype=torch.long,
            device=device,
        ),
    )


def _context(request: ScheduledRequest) -> int:
    return request.num_computed_tokens + len(request.token_ids)


def _groups(decodes: Sequence[ScheduledRequest]) -> list[list[ScheduledRequest]]:
    """Cut requests, sorted by context length, into groups worth padding to their longest."""
    groups: list[list[ScheduledRequest]] = []
    total = 0
    for request in decodes:
        length = _context(request)
        if groups:
            padded = length * (len(groups[-1]) + 1)
            if padded <= max((total + length) * _MAX_PADDING, total + length + _FREE_PADDING_SLOTS):
                groups[-1].append(request)
                total += length
                continue
        groups.append([request])
        total = length
    return groups


def _reach(decodes: Sequence[ScheduledRequest], longer: Sequence[ScheduledRequest], layout: _Layout) -> Reach:
    groups, chunks, first = [], [], 0
    for members in _groups(decodes):
        groups.append(_decode_group(members, first, layout))
        first += len(members)
    for request in longer:
        chunks.append(_chunk(request, first, layout))
        first += len(request.token_ids)
    return Reach(tuple(groups), tuple(chunks))


def _slots(block_ids: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Cache slots of positions: block tables [..., M], positions [C] or [..., C] -> [..., C]."""
    blocks = positions // block_size
    found = block_ids[..., blocks] if blocks.dim() == 1 else block_ids.gather(-1, blocks)
    return found * block_size + positions % block_size


def _decode_group(members: Sequence[ScheduledRequest], first: int, layout: _Layout) -> DecodeGroup:
    lengths = [_context(request) for request in members]
    num_blocks = -(-lengths[-1] // layout.block_size)
    tables = [r.block_ids[:num_blocks] + [0] * (num_blocks - len(r.block_ids)) for r in members]
    starts = [layout.first_seen(length - 1) for length in lengths]
    counts = [length - start for length, start in zip(lengths, starts, strict=True)]
    most = max(counts)
    mask = None
    if starts[-1] == 0 and counts[0] == most:
        slots = _slots(torch.tensor(tables), torch.arange(most), layout.block_size)  # [B, C]
    else:
        offsets = torch.arange(most).expand(len(members), most)
        is_padding = offsets >= torch.tensor(counts).unsqueeze(1)  # [B, C]
        positions = torch.tensor(starts).unsqueeze(1) + offsets.masked_fill(is_padding, 0)
        slots = _slots(torch.tensor(tables), positions, layout.block_size)
        if counts[0] != most:
            mask = torch.zeros(is_padding.shape, dtype=layout.dtype)
            mask = mask.masked_fill_(is_padding, float("-inf"))[:, None, None, :].to(layout.device)
    return DecodeGroup(slice(first, first + len(members)), slots.flatten().to(layout.device), mask)


def _chunk(request: ScheduledRequest, first: int, layout: _Layout) -> Chunk:
    num_tokens, num_computed = len(request.token_ids), request.num_computed_tokens
    rows = slice(first, first + num_tokens)
    context = _context(request)
    is_cut = layout.first_seen(context - 1) > 0
    if num_computed == 0 and not is_cut:
        return Chunk(rows, None, None)
    start = layout.first_seen(num_computed)
    seen = torch.arange(start, context)
    queries = torch.arange(num_computed, context).unsqueeze(1)
    is_hidden = seen > queries  # [T, C]
    if is_cut and layout.window is not None:
        is_hidden |= seen <= queries - layout.window
    mask = torch.zeros(is_hidden.shape, dtype=layout.dtype)
    mask = mask.masked_fill_(is_hidden, float("-inf")).to(layout.device)
    if num_computed == 0:
        return Chunk(rows, None, mask)
    slots = _slots(torch.tensor(request.block_ids), seen, layout.block_size)
    return Chunk(rows, slots.to(layout.device), mask)
