"""A model's layers over the kernels: what each needs, in the form they read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.architecture import Architecture, RopeSettings
from stoker_runtime.model.cuda.activation import gate_and_multiply
from stoker_runtime.model.cuda.chunk_attention import ChunkWork, attend_chunks
from stoker_runtime.model.cuda.decode_attention import DecodeWork, Partials, attend_decodes
from stoker_runtime.model.cuda.experts import answer
from stoker_runtime.model.cuda.launches import Launches
from stoker_runtime.model.cuda.norms import add_and_norm
from stoker_runtime.model.cuda.rotate import Rotation, rotate_and_store
from stoker_runtime.model.cuda.sdpa_attention import attend_spans, is_same
from stoker_runtime.model.cuda.shapes import Heads, Scoring, heads_of, scoring_of
from stoker_runtime.model.cuda.spans import Span
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.layer import HeadNorms, Layer, ProjectionNorms
from stoker_runtime.model.mlp import Mlp
from stoker_runtime.model.rope import Rope


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step on the device.

    Args:
        decodes: of the first rows, if any.
        partials: for the decodes.
        chunks: of the other rows, if any.
        spans: the chunks once more where PyTorch's operator may attend for them, else none.
    Shapes:
        token_ids, positions, slots [T] int32
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    decodes: DecodeWork | None
    partials: Partials | None
    chunks: ChunkWork | None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that the layers of a step share.

    Shapes:
        normed [T, E], query and attended [T, H * D], activated [T, I]
    """

    normed: Tensor
    query: Tensor
    attended: Tensor
    activated: Tensor


def make_scratch(architecture: Architecture, num_tokens: int, like: Tensor) -> Scratch:
    """Reserve it for a step; `like` has the dtype and the device."""
    heads_size = architecture.num_heads * architecture.head_dim
    widths = (architecture.hidden_size, heads_size, heads_size, architecture.intermediate_size)
    return Scratch(*(like.new_empty(num_tokens, width) for width in widths))


class CudaLayer:
    """One transformer layer in some nine launches; with a mixture some fourteen."""

    def __init__(
        self,
        layer: Layer,
        architecture: Architecture,
        ropes: Mapping[RopeSettings, Rope],
        launches: Launches,
    ) -> None:
        self._layer = layer
        self._eps = architecture.rms_norm_eps
        self._alpha = architecture.scales.residual
        self._heads: Heads = heads_of(architecture)
        self._scoring: Scoring = scoring_of(architecture, layer.kind)
        self._rotation = _rotation(layer, ropes, self._heads)
        self._launches = launches

    def __call__(
        self,
        hidden: Tensor,
        delta: Tensor | None,
        delta_weight: Tensor | None,
        step: StepTensors,
        cache: KVCache,
        index: int,
        scratch: Scratch,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the layer.

        Args:
            hidden: the residual stream; changed in place.
            delta: what the layer before adds to it, if there is one.
            delta_weight: the norm of that, if it has one.
            step: what is computed.
            cache: keys and values; changed in place.
            index: of the layer in the cache.
            scratch: overwritten.
        Shapes:
            hidden, delta [T, E]

        Returns:
            What this layer's MLP adds, and its norm: the next layer does the addition.
        """
        layer, eps, alpha = self._layer, self._eps, self._alpha
        norms = layer.attention_norms
        normed = add_and_norm(hidden, delta, delta_weight, norms.before, eps, alpha, scratch.normed)
        qkv = layer.qkv(normed)
        self._attend(qkv, step, cache, index, scratch)
        delta = layer.output(scratch.attended)
        before = layer.mlp_norms.before
        normed = add_and_norm(hidden, delta, norms.behind, before, eps, alpha, scratch.normed)
        return self._mlp(normed, step, scratch), layer.mlp_norms.behind

    def _attend(self, qkv: Tensor, step: StepTensors, cache: KVCache, index: int, scratch: Scratch) -> None:
        pair, query, out = cache.layer(index), scratch.query, scratch.attended
        heads, scoring, size = self._heads, self._scoring, cache.block_size
        rotate_and_store(qkv, self._rotation, step.positions, step.slots, pair, heads, self._eps, query)
        if step.decodes is not None and step.partials is not None:
            launch = self._launches.decodes
            attend_decodes(query, pair, size, step.decodes, step.partials, heads, scoring, out, launch)
        if step.chunks is None:
            return
        if step.spans and is_same(scoring, max(span.context for span in step.spans)):
            attend_spans(query, pair, size, step.chunks.blocks, step.spans, heads, scoring, out)
        else:
            attend_chunks(query, pair, size, step.chunks, heads, scoring, out, self._launches.chunks)

    def _mlp(self, rows: Tensor, step: StepTensors, scratch: Scratch) -> Tensor:
        mlp = self._layer.mlp
        if not isinstance(mlp, Mlp):
            if self._layer.has_single_experts:
                return mlp(rows)
            return answer(mlp, rows, F.linear(rows, mlp.router), step.slots)
        gate_and_multiply(mlp.gate_up(rows), mlp.activation, scratch.activated)
        return mlp.down(scratch.activated)


def _rotation(layer: Layer, ropes: Mapping[RopeSettings, Rope], heads: Heads) -> Rotation:
    rope = None if layer.kind.rope is None else ropes[layer.kind.rope]
    weight: Tensor | None = None
    match layer.qk_norms:
        case HeadNorms(of_heads):
            weight = of_heads.contiguous()
        case ProjectionNorms(query, key):
            weight = torch.cat([query, key]).view(-1, heads.head_dim)
    return Rotation(
        cosines=None if rope is None else rope.cos,
        sines=None if rope is None else rope.sin,
        norm_weight=weight,
        norms_projections=isinstance(layer.qk_norms, ProjectionNorms),
    )
