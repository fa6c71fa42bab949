"""One StepPlan as tensors: made once per step, read by every layer.

Requests are put in an order that suits attention: those that compute one token first, by context length,
cut into groups of similar length that are padded together; then each longer chunk on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        slots: cache slots of each context, [B * C], padded with the request's own first slot, so that no
            request ever reads what another one stored.
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
        slots: cache slots of the whole context, [C]; None when the chunk is the whole context.
        mask: causal, 0 or -inf, [T, C]; None when slots is None.
    """

    rows: slice
    slots: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tensors.

    Shapes:
        token_ids, positions, slot_mapping [T]; sampled_rows [requests that sample], in plan order
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    decode_groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]
    sampled_rows: Tensor


def pack_batch(plan: StepPlan, block_size: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """Turn a plan into tensors.

    Args:
        plan: at least one request.
        block_size: tokens per KV block.
        dtype: of the attention masks: the queries' dtype.
        device: where the tensors go.
    """
    decodes = sorted((r for r in plan.requests if len(r.token_ids) == 1), key=_context)
    longer = [r for r in plan.requests if len(r.token_ids) > 1]
    token_ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    last_rows: dict[str, int] = {}
    for request in (*decodes, *longer):
        span = range(request.num_computed_tokens, _context(request))
        token_ids += request.token_ids
        positions += span
        slot_mapping += [request.block_ids[p // block_size] * block_size + p % block_size for p in span]
        last_rows[request.request_id] = len(token_ids) - 1

    groups, first = [], 0
    for members in _groups(decodes):
        groups.append(_decode_group(members, first, block_size, dtype, device))
        first += len(members)
    chunks = []
    for request in longer:
        chunks.append(_chunk(request, first, block_size, dtype, device))
        first += len(request.token_ids)
    return Batch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slot_mapping=torch.tensor(slot_mapping, device=device),
        decode_groups=tuple(groups),
        chunks=tuple(chunks),
        sampled_rows=torch.tensor(
            [last_rows[r.request_id] for r in plan.requests if r.samples], dtype=torch.long, device=device
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


def _slots(tables: Tensor, count: int, block_size: int) -> Tensor:
    """Cache slots of the first `count` tokens: block tables [..., M] -> [..., count]."""
    offsets = torch.arange(count)
    return tables[..., offsets // block_size] * block_size + offsets % block_size


def _decode_group(
    members: Sequence[ScheduledRequest], first: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> DecodeGroup:
    lengths = [_context(request) for request in members]
    longest = lengths[-1]
    num_blocks = -(-longest // block_size)
    tables = [r.block_ids[:num_blocks] + [0] * (num_blocks - len(r.block_ids)) for r in members]
    slots = _slots(torch.tensor(tables), longest, block_size)  # [B, C]
    mask = None
    if lengths[0] != longest:
        is_padding = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)  # [B, C]
        slots = torch.where(is_padding, slots[:, :1], slots)
        mask = torch.zeros(is_padding.shape, dtype=dtype).masked_fill_(is_padding, float("-inf"))
        mask = mask[:, None, None, :].to(device)
    return DecodeGroup(slice(first, first + len(members)), slots.flatten().to(device), mask)


def _chunk(
    request: ScheduledRequest, first: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> Chunk:
    num_tokens = len(request.token_ids)
    rows = slice(first, first + num_tokens)
    if request.num_computed_tokens == 0:
        return Chunk(rows, None, None)
    context = _context(request)
    slots = _slots(torch.tensor(request.block_ids), context, block_size)
    mask = torch.full((num_tokens, context), float("-inf"), dtype=dtype)
    mask.triu_(request.num_computed_tokens + 1)
    return Chunk(rows, slots.to(device), mask.to(device))
