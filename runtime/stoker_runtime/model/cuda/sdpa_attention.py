"""Attention of long chunks by PyTorch's fused operator, over keys and values that are gathered for it.

It is FlashAttention-2 (Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work
Partitioning") or what else PyTorch brings along. It knows no block tables, caps or windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from stoker_runtime.model.cuda.shapes import Heads, Scoring
from stoker_runtime.model.cuda.spans import Span

# Not cuDNN, which makes a plan for each length of a prompt when it first sees it.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def is_same(scoring: Scoring, longest: int) -> bool:
    """Tell whether a layer scores contexts of up to `longest` tokens as the operator does."""
    return scoring.cap is None and (scoring.window is None or scoring.window >= longest)


def is_fused(heads: Heads, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether a device has a fused operator: others keep the scores of all tokens in memory.

    A CPU, where only tests run this, may do so.
    """
    if device.type != "cuda":
        return True
    query, key = (
        torch.empty(1, count, 16, heads.head_dim, dtype=dtype, device=device)
        for count in (heads.num_heads, heads.num_kv_heads)
    )
    params = torch.backends.cuda.SDPAParams(query, key, key, None, 0.0, True, heads.group > 1)
    return bool(torch.backends.cuda.can_use_flash_attention(params))


def attend_spans(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    block_size: int,
    blocks: Tensor,
    spans: Sequence[Span],
    heads: Heads,
    scoring: Scoring,
    out: Tensor,
) -> None:
    """Attend each chunk's tokens over what comes before them and themselves, one chunk after the other.

    Args:
        query: rotated.
        cache: one layer's keys and values by slot, with those of this step, of the query's dtype.
        block_size: tokens per KV block.
        blocks: block tables, in which spans say where theirs begin.
        spans: the chunks.
        heads: of the model.
        scoring: of the layer; one that `is_same` for their contexts.
        out: the chunks' rows are overwritten.
    Shapes:
        query, out [T, H * D], cache 2 x [N * S, Hkv, D], blocks [tables] int32
    """
    with _backends(query.device):
        for span in spans:
            _attend_span(query, cache, block_size, blocks, span, heads, scoring, out)


def _attend_span(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    block_size: int,
    blocks: Tensor,
    span: Span,
    heads: Heads,
    scoring: Scoring,
    out: Tensor,
) -> None:
    shape = (1, -1, heads.num_heads, heads.head_dim)
    rows = slice(span.first_row, span.first_row + span.num_tokens)
    table = blocks[span.first_block : span.first_block - (-span.context // block_size)]
    key, value = (_gathered(part, table, block_size)[:, : span.context] for part in cache)
    is_whole = span.num_computed == 0
    attended = F.scaled_dot_product_attention(
        query[rows].view(shape).transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if is_whole else causal_lower_right(span.num_tokens, span.context),
        is_causal=is_whole,
        scale=scoring.scale,
        enable_gqa=heads.group > 1,
    )
    out[rows].view(shape).copy_(attended.transpose(1, 2))


def _backends(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(_BACKENDS) if device.type == "cuda" else nullcontext()


def _gathered(by_slot: Tensor, table: Tensor, block_size: int) -> Tensor:
    """Return the blocks of a table in a row: [N * S, Hkv, D] -> [1, blocks * S, Hkv, D]."""
    by_block = by_slot.view(-1, block_size * by_slot[0].numel())
    return by_block.index_select(0, table).view(1, -1, *by_slot.shape[1:])
