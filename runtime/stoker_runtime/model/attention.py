"""Attention over the paged cache, in plain PyTorch: each request sees its own slots and nothing else.

What a token attends to is the same to the last bit in any chunk and beside any neighbours, because each part
of it depends on positions alone. Scores and sums of values are products of a multiple of ROWS query rows: of
fewer, libraries add up a row in another order. Values are summed segment by segment, and what a token does
not see of a segment adds zeros, which change nothing. PyTorch's fused operator cuts by the numbers of queries
and keys instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.batch import ROWS, SEGMENT, Batch, Chunk, DecodeGroup
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
    """Store this step's keys and values, then attend each request over its context, in float32.

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
    for new, place in zip((key, value), cache, strict=True):
        _store(new, place, batch.slot_mapping)
    num_tokens, _, size = query.shape
    # Query heads that share a KV head become rows of one product: keys are never repeated.
    grouped = query.float().mul(size**-0.5 if scale is None else scale)
    grouped = grouped.view(num_tokens, key.shape[1], -1, size)  # [T, Hkv, G, D]
    reach = batch.reaches[window]
    parts = [_decode(grouped[group.rows], cache, group, cap) for group in reach.decode_groups]
    parts += [_prefill(grouped[chunk.rows], cache, chunk, cap) for chunk in reach.chunks]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(num_tokens, -1).to(query.dtype)


def _store(new: Tensor, place: Tensor, slots: Tensor) -> None:
    if place.dtype != FP8:
        place.index_copy_(0, slots, new)
        return
    place.view(torch.uint8).index_copy_(0, slots, to_fp8(new).view(torch.uint8))  # not all devices move fp8


def _gathered(place: Tensor, places: Tensor) -> Tensor:
    """Rows of the cache in float32: [..., Hkv, D], places [R] -> [R, D]."""
    rows = place.flatten(0, 1)
    if place.dtype != FP8:
        return rows.index_select(0, places).float()
    return rows.view(torch.uint8).index_select(0, places).view(FP8).float()


def _decode(grouped: Tensor, cache: tuple[Tensor, Tensor], group: DecodeGroup, cap: float | None) -> Tensor:
    """[B, Hkv, G, D] over C gathered slots each -> [B, Hkv, G, D]."""
    num_requests, num_kv_heads, num_shared, size = grouped.shape
    query = F.pad(grouped, (0, 0, 0, -num_shared % ROWS)).flatten(0, 1)  # [B * Hkv, M, D]
    key, value = (_gathered(place, group.places).view(query.shape[0], -1, size) for place in cache)
    scores = _scores(query, key, cap)
    scores.view(num_requests, -1, scores.shape[-1]).add_(group.mask)
    return _summed(scores, value).view(num_requests, num_kv_heads, -1, size)[:, :, :num_shared]


def _prefill(grouped: Tensor, cache: tuple[Tensor, Tensor], chunk: Chunk, cap: float | None) -> Tensor:
    """[T, Hkv, G, D] over what the chunk sees -> [T, Hkv, G, D]."""
    num_tokens, num_kv_heads, num_shared, size = grouped.shape
    key, value = (_gathered(place, chunk.places).view(num_kv_heads, -1, size) for place in cache)
    query = F.pad(grouped.transpose(0, 1), (0, 0, 0, 0, 0, -num_tokens % ROWS))  # [Hkv, T, G, D]
    parts = []
    for tile in chunk.tiles:
        scores = _scores(query[:, slice(*tile.tokens)].flatten(1, 2), key[:, tile.seen], cap)
        shared = scores.view(num_kv_heads, -1, num_shared, scores.shape[-1])
        shared[..., tile.num_open :].add_(tile.mask)
        parts.append(_summed(scores, value[:, tile.seen]))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out.view(num_kv_heads, -1, num_shared, size)[:, :num_tokens].transpose(0, 1)


def _scores(query: Tensor, key: Tensor, cap: float | None) -> Tensor:
    """[N, M, D], [N, C, D] -> [N, M, C]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)


def _summed(scores: Tensor, value: Tensor) -> Tensor:
    """Values weighed by masked scores, segment after segment: [N, M, C], [N, C, D] -> [N, M, D]."""
    weights = scores.softmax(dim=-1)
    out = torch.bmm(weights[..., :SEGMENT], value[:, :SEGMENT])
    for begin in range(SEGMENT, value.shape[1], SEGMENT):
        span = slice(begin, begin + SEGMENT)
        out.baddbmm_(weights[..., span], value[:, span])
    return out


def is_attention_even(head_dim: int) -> bool:
    """Tell whether a query's scores and sums get the same bits in calls of other sizes, on this CPU."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4 * SEGMENT, head_dim)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))

    def attended(first: int, last: int, num_seen: int, num_lists: int) -> Tensor:
        rows, keys = query[:num_lists, first:last].clone(), key[:num_lists, :num_seen]
        scores = _scores(rows, keys, None)
        scores[..., SEGMENT // 2 :] = float("-inf")
        return _summed(scores, value[:num_lists, :num_seen])[0]

    together = attended(0, 24 * ROWS, 4 * SEGMENT, 2)
    spans = ((0, ROWS), (5 * ROWS, 6 * ROWS), (3 * ROWS, 12 * ROWS))
    return all(
        torch.equal(attended(first, last, num_seen, num_lists), together[first:last])
        for first, last in spans
        for num_seen, num_lists in ((SEGMENT, 1), (3 * SEGMENT, 2))
    )
