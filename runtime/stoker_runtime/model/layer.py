"""One layer of the decoder: attention and MLP, each with its norms and its way around."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.model.architecture import Architecture, LayerKind, RopeSettings
from stoker_runtime.model.attention import attend
from stoker_runtime.model.batch import Batch
from stoker_runtime.model.linear import Product
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.rope import rotate

Angles = Mapping[RopeSettings, tuple[Tensor, Tensor]]
KVPair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of each query and key head by itself.

    Shapes:
        weight [H + Hkv, D]
    """

    weight: Tensor

    def __call__(self, heads: Tensor, eps: float) -> Tensor:
        """Normalise queries and keys: [T, H + Hkv, D] -> the same."""
        if self.weight.dtype == heads.dtype:
            return F.rms_norm(heads, heads.shape[-1:], None, eps) * self.weight
        return (F.rms_norm(heads.float(), heads.shape[-1:], None, eps) * self.weight).to(heads.dtype)


@dataclass(frozen=True, slots=True)
class ProjectionNorms:
    """RMSNorm of all query heads together, and of all key heads.

    Shapes:
        query [H * D], key [Hkv * D]
    """

    query: Tensor
    key: Tensor

    def __call__(self, heads: Tensor, eps: float) -> Tensor:
        """Normalise queries and keys: [T, H + Hkv, D] -> the same."""
        flat, size = heads.flatten(1), self.query.shape[0]
        parts = ((flat[:, :size], self.query), (flat[:, size:], self.key))
        normed = [F.rms_norm(part, weight.shape, weight, eps) for part, weight in parts]
        return torch.cat(normed, dim=-1).view(heads.shape)


@dataclass(frozen=True, slots=True)
class Norms:
    """RMSNorms around a layer's attention or its MLP, as far as the family has them.

    Shapes:
        before, behind [E]
    """

    before: Tensor | None
    behind: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer.

    Shapes:
        qkv [(H + 2 Hkv) * D, E]
    """

    kind: LayerKind
    attention_norms: Norms
    qkv: Product
    qk_norms: HeadNorms | ProjectionNorms | None
    output: Product
    mlp_norms: Norms
    mlp: Mlp | Experts

    def __call__(
        self, hidden: Tensor, angles: Angles, cache: KVPair, batch: Batch, architecture: Architecture
    ) -> Tensor:
        """Return the residual stream after this layer: hidden [T, E] -> [T, E].

        Args:
            hidden: the residual stream before it.
            angles: cosines and sines of the step, by rotation.
            cache: this layer's keys and values; changed in place.
            batch: the step.
            architecture: of the model.
        """
        eps, residual = architecture.rms_norm_eps, architecture.scales.residual
        attended = self._attend(
            _normed(hidden, self.attention_norms.before, eps), angles, cache, batch, architecture
        )
        hidden = _added(hidden, _normed(attended, self.attention_norms.behind, eps), residual)
        computed = self.mlp(_normed(hidden, self.mlp_norms.before, eps))
        return _added(hidden, _normed(computed, self.mlp_norms.behind, eps), residual)

    @property
    def has_single_experts(self) -> bool:
        """Whether its experts are multiplied one after the other, which the host must count."""
        return isinstance(self.mlp, Experts) and self.mlp.stacks is None

    def mapped(self, change: Callable[[Product], Product]) -> Layer:
        """Return the same layer with each of its products changed."""
        return replace(self, qkv=change(self.qkv), output=change(self.output), mlp=self.mlp.mapped(change))

    def _attend(
        self, hidden: Tensor, angles: Angles, cache: KVPair, batch: Batch, architecture: Architecture
    ) -> Tensor:
        heads = self.qkv(hidden).view(hidden.shape[0], -1, architecture.head_dim)  # [T, H + 2 Hkv, D]
        num_rotated = architecture.num_heads + architecture.num_kv_heads
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if self.qk_norms is not None:
            rotated = self.qk_norms(rotated, architecture.rms_norm_eps)
        if self.kind.rope is not None:
            rotated = rotate(rotated, *angles[self.kind.rope])
        query, key = rotated[:, : architecture.num_heads], rotated[:, architecture.num_heads :]
        scales = architecture.scales
        out = attend(
            query, key, value, cache, batch, self.kind.window, scales.attention, scales.attention_cap
        )
        return self.output(out)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return rows / rms(rows) * weight, rounded after both where the weight is of a wider type: [T, E]."""
    if weight.dtype == rows.dtype:
        return F.rms_norm(rows, weight.shape, weight, eps)
    return F.rms_norm(rows.float(), weight.shape, weight, eps).to(rows.dtype)


def _normed(rows: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return rows if weight is None else rms_norm(rows, weight, eps)


def _added(hidden: Tensor, delta: Tensor, scale: float) -> Tensor:
    """Return hidden + scale * delta, rounded once."""
    if scale == 1:
        return hidden + delta
    # In half precision PyTorch rounds the product as well, but only of elements that do not fill a vector.
    return hidden.float().add(delta.float(), alpha=scale).to(hidden.dtype)
