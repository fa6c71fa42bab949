"""From the projection of queries, keys and values to rotated queries and an updated KV cache, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.e4m3 import to_e4m3
from stoker_runtime.model.cuda.shapes import Heads
from stoker_runtime.model.cuda.stored import as_stored

_HEADS_PER_PROGRAM = 16
_NO_NORM, _HEAD_NORM, _PROJECTION_NORM = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a layer does to queries and keys between projection and attention.

    Args:
        cosines: by position, if the layer rotates.
        sines: likewise; those of the first half are negated.
        norm_weight: of queries and keys, if they are normalised.
        norms_projections: all heads of a projection are normalised together, not each by itself.
    Shapes:
        cosines, sines [P, R]; norm_weight [H + Hkv, D]
    """

    cosines: Tensor | None
    sines: Tensor | None
    norm_weight: Tensor | None
    norms_projections: bool


@triton.jit
def _projection_scale(
    qkv, first, count, dims, eps, HEAD_DIM: tl.constexpr, HEAD_PADDED: tl.constexpr, HEADS: tl.constexpr
):
    """1 / rms of a row's heads first .. first + count."""
    squares = tl.zeros([HEADS, HEAD_PADDED], tl.float32)
    for start in range(0, count, HEADS):
        offset = start + tl.arange(0, HEADS)
        mask = (offset < count)[:, None] & (dims < HEAD_DIM)[None, :]
        part = tl.load(qkv + (first + offset)[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        squares += part.to(tl.float32) * part.to(tl.float32)
    return tl.rsqrt(tl.sum(squares) / (count * HEAD_DIM) + eps)


@triton.jit
def _rotate_kernel(
    qkv,
    query,
    keys,
    values,
    cosines,
    sines,
    norm_weight,
    positions,
    slots,
    num_heads,
    num_kv_heads,
    slot_stride,
    eps,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, HEAD_PADDED)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    num_turned = num_heads + num_kv_heads
    is_head = heads < num_turned + num_kv_heads
    is_turned = (heads < num_turned)[:, None]
    mask = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    qkv += token * (num_turned + num_kv_heads) * HEAD_DIM
    where = heads[:, None] * HEAD_DIM + dims[None, :]
    raw = tl.load(qkv + where, mask=mask, other=0.0)
    row = raw.to(tl.float32)
    # Values go through unchanged: their scale stays 1, and nothing of them is normed or turned.
    scale = tl.full([HEADS, 1], 1.0, tl.float32)
    if NORM == 1:
        scale = tl.rsqrt(tl.sum(row * row, axis=1) / HEAD_DIM + eps)[:, None]
    if NORM == 2:
        of_query = _projection_scale(qkv, 0, num_heads, dims, eps, HEAD_DIM, HEAD_PADDED, HEADS)
        of_key = _projection_scale(qkv, num_heads, num_kv_heads, dims, eps, HEAD_DIM, HEAD_PADDED, HEADS)
        scale = tl.where(heads < num_heads, of_query, of_key)[:, None]
    if NORM != 0:
        weight = tl.load(norm_weight + where, mask=mask & is_turned, other=0.0).to(tl.float32)
        row = row * scale * weight
    if ROTARY > 0:
        position = tl.load(positions + token).to(tl.int64)
        is_rotary = dims < ROTARY
        partner_dims = tl.where(dims < ROTARY // 2, dims + ROTARY // 2, dims - ROTARY // 2)
        partner_where = heads[:, None] * HEAD_DIM + partner_dims[None, :]
        partner_mask = mask & is_turned & is_rotary[None, :]
        partner = tl.load(qkv + partner_where, mask=partner_mask, other=0.0).to(tl.float32)
        if NORM != 0:
            weight = tl.load(norm_weight + partner_where, mask=partner_mask, other=0.0).to(tl.float32)
            partner = partner * scale * weight
        cos = tl.load(cosines + position * ROTARY + dims, mask=is_rotary, other=1.0).to(tl.float32)
        sin = tl.load(sines + position * ROTARY + dims, mask=is_rotary, other=0.0).to(tl.float32)
        row = row * cos[None, :] + partner * sin[None, :]
    turned = row.to(raw.dtype)
    query_where = token * num_heads * HEAD_DIM + where
    tl.store(query + query_where, turned, mask=mask & (heads < num_heads)[:, None])
    if keys.dtype.element_ty == tl.uint8:
        stored_key, stored_value = to_e4m3(turned), to_e4m3(raw)
    else:
        stored_key, stored_value = turned, raw
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:  # a padding row stores nothing
        key_where = slot * slot_stride + where - num_heads * HEAD_DIM
        is_key = (heads >= num_heads)[:, None] & is_turned
        tl.store(keys + key_where, stored_key, mask=mask & is_key)
        value_where = slot * slot_stride + where - num_turned * HEAD_DIM
        is_value = (heads >= num_turned)[:, None]
        tl.store(values + value_where, stored_value, mask=mask & is_value)


def rotate_and_store(
    qkv: Tensor,
    rotation: Rotation,
    positions: Tensor,
    slots: Tensor,
    cache: tuple[Tensor, Tensor],
    heads: Heads,
    eps: float,
    query: Tensor,
) -> None:
    """Normalise and rotate queries and keys, and store keys and values.

    Args:
        qkv: the layer's projection.
        rotation: of the layer.
        positions: of the tokens.
        slots: where the cache keeps each token; -1 for padding rows, which store nothing.
        cache: one layer's keys and values by slot, of the projection's dtype or fp8; changed in place.
        heads: of the model.
        eps: of the norms.
        query: overwritten with the rotated queries.
    Shapes:
        qkv [T, (H + 2 Hkv) * D], positions and slots [T] int32, cache 2 x [N * S, Hkv, D], query [T, H * D]
    """
    keys, values = as_stored(cache)
    num_programs = triton.cdiv(heads.num_heads + 2 * heads.num_kv_heads, _HEADS_PER_PROGRAM)
    weight, cosines, sines = rotation.norm_weight, rotation.cosines, rotation.sines
    norm = _NO_NORM
    if weight is not None:
        norm = _PROJECTION_NORM if rotation.norms_projections else _HEAD_NORM
    _rotate_kernel[(qkv.shape[0], num_programs)](
        qkv,
        query,
        keys,
        values,
        qkv if cosines is None else cosines,
        qkv if sines is None else sines,
        qkv if weight is None else weight,
        positions,
        slots,
        heads.num_heads,
        heads.num_kv_heads,
        keys.stride(0),
        eps,
        HEAD_DIM=heads.head_dim,
        HEAD_PADDED=triton.next_power_of_2(heads.head_dim),
        HEADS=_HEADS_PER_PROGRAM,
        ROTARY=0 if cosines is None else cosines.shape[1],
        NORM=norm,
        num_warps=4,
    )
