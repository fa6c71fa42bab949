"""Attention over the paged cache, in plain PyTorch: each request sees its own slots and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.batch import Batch, Chunk, DecodeGroup
from stoker_runtime.model.fp8 import FP8, to_fp8


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: tuple[Tensor, Tensor],
    batch: Batch,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Store this step's keys and values, then attend each request over its context.

    Args:
        query: already rotated.
        key: already rotated.
        value: as projected.
        cache: one layer's keys and values by slot, of the query's dtype or FP8; changed in place.
        batch: where each token goes and what it sees.
        window: of this layer; one of those that the batch was packed for.
        scale: of the scores; None for 1 / sqrt(D).
        cap: turns scaled scores into cap * tanh(score / cap), if given.
    Shapes:
        query [T, H, D], key and value [T, Hkv, D], cache 2 x [N * S, Hkv, D] -> [T, H * D]
    """
    keys, values = cache
    key, value = (_store(new, place, batch.slot_mapping) for new, place in ((key, keys), (value, values)))
    num_kv_heads = key.shape[1]
    # Query heads that share a KV head become rows (decode) or a batch axis (chunks): keys are never repeated.
    grouped = query.view(query.shape[0], num_kv_heads, -1, query.shape[2])  # [T, Hkv, G, D]
    reach = batch.reaches[window]
    parts = [_decode(grouped[group.rows], keys, values, group, scale, cap) for group in reach.decode_groups]
    for chunk in reach.chunks:
        rows = chunk.rows
        if chunk.slots is None:
            seen = key[rows], value[rows]
        else:
            seen = _gathered(keys, chunk.slots, query.dtype), _gathered(values, chunk.slots, query.dtype)
        parts.append(_prefill(grouped[rows], *seen, chunk, scale, cap))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(query.shape[0], -1)


def _store(new: Tensor, place: Tensor, slots: Tensor) -> Tensor:
    """Store keys or values; returns what was stored, so that a chunk sees the same before and after."""
    if place.dtype != FP8:
        place.index_copy_(0, slots, new)
        return new
    stored = to_fp8(new)
    place.view(torch.uint8).index_copy_(0, slots, stored.view(torch.uint8))  # not all devices move fp8
    return stored.to(new.dtype)


def _gathered(place: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    if place.dtype != FP8:
        return place.index_select(0, slots)
    return place.view(torch.uint8).index_select(0, slots).view(FP8).to(dtype)


def _decode(
    grouped: Tensor,
    keys: Tensor,
    values: Tensor,
    group: DecodeGroup,
    scale: float | None,
    cap: float | None,
) -> Tensor:
    """[B, Hkv, G, D] over C gathered slots each -> [B, Hkv, G, D]."""
    num_requests = grouped.shape[0]
    shape = (num_requests, -1, *keys.shape[1:])
    key = _gathered(keys, group.slots, grouped.dtype).view(shape).transpose(1, 2)  # [B, Hkv, C, D]
    value = _gathered(values, group.slots, grouped.dtype).view(shape).transpose(1, 2)
    if cap is not None:
        return _capped(grouped, key, value, group.mask, scale, cap)
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=group.mask, scale=scale)


def _prefill(
    grouped: Tensor, key: Tensor, value: Tensor, chunk: Chunk, scale: float | None, cap: float | None
) -> Tensor:
    """[T, Hkv, G, D] over key and value [C, Hkv, D] -> [T, Hkv, G, D]."""
    _, num_kv_heads, num_shared, size = grouped.shape
    spread = (num_kv_heads, num_shared, -1, size)
    query = grouped.permute(1, 2, 0, 3)  # [Hkv, G, T, D]
    key = key.transpose(0, 1).unsqueeze(1).expand(spread)  # [Hkv, G, C, D]
    value = value.transpose(0, 1).unsqueeze(1).expand(spread)
    if cap is not None:
        mask = chunk.mask
        if mask is None:
            mask = query.new_full((query.shape[-2], key.shape[-2]), float("-inf")).triu_(1)
        out = _capped(query, key, value, mask, scale, cap)
    else:
        is_causal = chunk.mask is None
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=chunk.mask, is_causal=is_causal, scale=scale
        )
    return out.permute(2, 0, 1, 3)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float
) -> Tensor:
    """Attention with capped scores, which the fused operator does not have: [..., T, D] -> [..., T, D]."""
    scores = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
