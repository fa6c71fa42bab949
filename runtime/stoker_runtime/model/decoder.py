"""The decoder of the Llama family: embeddings, layers, logits; `build_decoder` loads one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Architecture, LayerKind
from stoker_runtime.model.attention import attend
from stoker_runtime.model.batch import Batch
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.rope import Rope, rotate
from stoker_runtime.model.weights import WeightSource

# In some checkpoints, and always recomputed from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_ROPE_DIVISORS = "rope_freqs.weight"  # Llama 3's scaling, as GGUF files carry it


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of each query and key head by itself.

    Shapes:
        weight [H + Hkv, D]
    """

    weight: Tensor

    def __call__(self, heads: Tensor, eps: float) -> Tensor:
        """Normalise queries and keys: [T, H + Hkv, D] -> the same."""
        return F.rms_norm(heads, heads.shape[-1:], None, eps) * self.weight


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
class Layer:
    """One transformer layer.

    Args:
        kind: what may differ between the layers of one model.
        attention_norm: before attention, or behind it where the family normalises outputs.
        mlp_norm: of the MLP, likewise.
    Shapes:
        qkv [(H + 2 Hkv) * D, E], gate_up [2 * intermediate, E]
    """

    kind: LayerKind
    attention_norm: Tensor
    qkv: Linear
    qk_norms: HeadNorms | ProjectionNorms | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear

    def __call__(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        batch: Batch,
        architecture: Architecture,
    ) -> Tensor:
        """Return the residual stream after this layer: hidden [T, E] -> [T, E]."""
        eps, residual = architecture.rms_norm_eps, architecture.scales.residual
        if architecture.family.norms_outputs:
            added = self._attend(hidden, angles, cache, batch, architecture)
            hidden = hidden + F.rms_norm(added, added.shape[-1:], self.attention_norm, eps)
            added = self._mlp(hidden)
            return hidden + F.rms_norm(added, added.shape[-1:], self.mlp_norm, eps)
        normed = F.rms_norm(hidden, hidden.shape[-1:], self.attention_norm, eps)
        attended = self._attend(normed, angles, cache, batch, architecture)
        hidden = hidden.add(attended, alpha=residual)
        normed = F.rms_norm(hidden, hidden.shape[-1:], self.mlp_norm, eps)
        return hidden.add(self._mlp(normed), alpha=residual)

    def _attend(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        batch: Batch,
        architecture: Architecture,
    ) -> Tensor:
        heads = self.qkv(hidden).view(hidden.shape[0], -1, architecture.head_dim)  # [T, H + 2 Hkv, D]
        num_rotated = architecture.num_heads + architecture.num_kv_heads
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if self.qk_norms is not None:
            rotated = self.qk_norms(rotated, architecture.rms_norm_eps)
        if self.kind.has_rope:
            rotated = rotate(rotated, *angles)
        query, key = rotated[:, : architecture.num_heads], rotated[:, architecture.num_heads :]
        scale = architecture.scales.attention
        return self.output(attend(query, key, value, cache, batch, self.kind.window, scale))

    def _mlp(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class Decoder:
    """A loaded model. Holds no state between steps; the KV cache is an argument."""

    def __init__(
        self,
        architecture: Architecture,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        lm_head: Linear,
        rope_divisors: Tensor | None,
        num_bytes: int,
    ) -> None:
        self.architecture = architecture
        self.num_bytes = num_bytes
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._lm_head = lm_head
        self._rope_divisors = rope_divisors
        self._rope: Rope | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, the activations and the KV cache."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    def set_max_positions(self, count: int) -> None:
        """Make the table of rotary angles; needed once, before the first step."""
        self._rope = Rope(self.architecture, count, self.dtype, self.device, self._rope_divisors)

    def __call__(self, batch: Batch, cache: KVCache) -> Tensor:
        """Compute one step.

        Returns:
            Logits of the rows that sample, [len(batch.sampled_rows), V] float32.
        """
        assert self._rope is not None, "set_max_positions comes first"
        scales = self.architecture.scales
        hidden = F.embedding(batch.token_ids, self._embedding)
        if scales.embedding != 1:
            hidden = hidden * scales.embedding
        angles = self._rope.at(batch.positions)
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, angles, cache.layer(index), batch, self.architecture)
        hidden = hidden[batch.sampled_rows]
        normed = F.rms_norm(hidden, hidden.shape[-1:], self._norm, self.architecture.rms_norm_eps)
        logits = self._lm_head(normed).float()
        return logits if scales.logits == 1 else logits / scales.logits


def build_decoder(
    architecture: Architecture, source: WeightSource, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """Load every weight into its place.

    Raises:
        ModelError: a tensor is missing, has another shape than the configuration says, or is in the files
            but in no place of this architecture.
    """
    return _Builder(architecture, source, dtype, device).decoder()


class _Builder:
    """Loads tensor after tensor and remembers which names it used."""

    def __init__(
        self, architecture: Architecture, source: WeightSource, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._architecture = architecture
        self._source = source
        self._dtype = dtype
        self._device = device
        self._used: set[str] = set()
        self._num_bytes = 0

    def decoder(self) -> Decoder:
        arch = self._architecture
        embedding = self._rows("weight", {"model.embed_tokens": arch.vocab_size}, arch.hidden_size)
        layers = [self._layer(f"model.layers.{index}", kind) for index, kind in enumerate(arch.layers)]
        norm = self._vector("model.norm.weight", arch.hidden_size)
        if arch.tied_embeddings:
            self._used.add("lm_head.weight")  # some checkpoints store the copy as well
            lm_head = Linear(embedding)
        else:
            lm_head = Linear(self._rows("weight", {"lm_head": arch.vocab_size}, arch.hidden_size))
        divisors = None
        if _ROPE_DIVISORS in self._source.names:
            divisors = torch.empty(arch.head_dim // 2)
            self._copy(_ROPE_DIVISORS, divisors)
        self._refuse_unused()
        return Decoder(arch, embedding, layers, norm, lm_head, divisors, self._num_bytes)

    def _layer(self, prefix: str, kind: LayerKind) -> Layer:
        arch = self._architecture
        heads, kv_heads = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        gate_up = {"gate_proj": arch.intermediate_size, "up_proj": arch.intermediate_size}
        if arch.family.has_fused_projections:  # one tensor, with the same parts in the same order
            qkv, gate_up = {"qkv_proj": sum(qkv.values())}, {"gate_up_proj": sum(gate_up.values())}
        norms = ("input_layernorm", "post_attention_layernorm")
        if arch.family.norms_outputs:
            norms = ("post_attention_layernorm", "post_feedforward_layernorm")
        attention_norm, mlp_norm = (
            self._vector(f"{prefix}.{norm}.weight", arch.hidden_size) for norm in norms
        )
        return Layer(
            kind=kind,
            attention_norm=attention_norm,
            qkv=self._linear(attention, qkv, arch.hidden_size, bias=arch.family.qkv_bias),
            qk_norms=self._qk_norms(attention),
            output=self._linear(attention, {"o_proj": arch.hidden_size}, heads),
            mlp_norm=mlp_norm,
            gate_up=self._linear(mlp, gate_up, arch.hidden_size),
            down=self._linear(mlp, {"down_proj": arch.hidden_size}, arch.intermediate_size),
        )

    def _qk_norms(self, prefix: str) -> HeadNorms | ProjectionNorms | None:
        arch = self._architecture
        query, key = f"{prefix}.q_norm.weight", f"{prefix}.k_norm.weight"
        match arch.family.qk_norm:
            case None:
                return None
            case "head":
                weights = ((query, arch.num_heads), (key, arch.num_kv_heads))
                spread = [self._vector(name, arch.head_dim).expand(count, -1) for name, count in weights]
                return HeadNorms(torch.cat(spread))
            case "projection":
                return ProjectionNorms(
                    self._vector(query, arch.num_heads * arch.head_dim),
                    self._vector(key, arch.num_kv_heads * arch.head_dim),
                )

    def _linear(self, prefix: str, modules: dict[str, int], num_inputs: int, bias: bool = False) -> Linear:
        """Load modules that read the same input as one, stacked by output row."""
        parts = {f"{prefix}.{name}": rows for name, rows in modules.items()}
        return Linear(self._rows("weight", parts, num_inputs), self._rows("bias", parts) if bias else None)

    def _rows(self, kind: str, parts: dict[str, int], *trailing: int) -> Tensor:
        stacked = torch.empty(sum(parts.values()), *trailing, dtype=self._dtype, device=self._device)
        first = 0
        for module, rows in parts.items():
            self._copy(f"{module}.{kind}", stacked[first : first + rows])
            first += rows
        self._num_bytes += stacked.nbytes
        return stacked

    def _vector(self, name: str, size: int) -> Tensor:
        vector = torch.empty(size, dtype=self._dtype, device=self._device)
        self._copy(name, vector)
        self._num_bytes += vector.nbytes
        return vector

    def _copy(self, name: str, destination: Tensor) -> None:
        self._source.copy_into(name, destination)
        self._used.add(name)

    def _refuse_unused(self) -> None:
        unused = sorted(
            name for name in self._source.names - self._used if not name.endswith(_IGNORED_SUFFIXES)
        )
        if unused:
            raise ModelError(
                f"{len(unused)} tensors have no place in {self._architecture.name}, the first is {unused[0]}",
                reason="UnsupportedModel",
            )
