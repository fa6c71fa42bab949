"""The decoder of the Llama family: embeddings, layers, logits; `build_decoder` loads one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Architecture
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
class Layer:
    """One transformer layer.

    Shapes:
        qkv [(H + 2 Hkv) * D, E], head_norm [H + Hkv, D] (Qwen 3 only), gate_up [2 * intermediate, E]
    """

    input_norm: Tensor
    qkv: Linear
    head_norm: Tensor | None
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
        eps = architecture.rms_norm_eps
        normed = F.rms_norm(hidden, hidden.shape[-1:], self.input_norm, eps)
        heads = self.qkv(normed).view(hidden.shape[0], -1, architecture.head_dim)  # [T, H + 2 Hkv, D]
        num_rotated = architecture.num_heads + architecture.num_kv_heads
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if self.head_norm is not None:
            rotated = F.rms_norm(rotated, rotated.shape[-1:], None, eps) * self.head_norm
        rotated = rotate(rotated, *angles)
        query, key = rotated[:, : architecture.num_heads], rotated[:, architecture.num_heads :]
        hidden = hidden + self.output(attend(query, key, value, cache, batch))
        gate_up = self.gate_up(F.rms_norm(hidden, hidden.shape[-1:], self.mlp_norm, eps))
        gate, up = gate_up.chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate).mul_(up))


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
        hidden = F.embedding(batch.token_ids, self._embedding)
        angles = self._rope.at(batch.positions)
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, angles, cache.layer(index), batch, self.architecture)
        hidden = hidden[batch.sampled_rows]
        normed = F.rms_norm(hidden, hidden.shape[-1:], self._norm, self.architecture.rms_norm_eps)
        return self._lm_head(normed).float()


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
        layers = [self._layer(f"model.layers.{index}") for index in range(arch.num_layers)]
        norm = self._vector("model.norm.weight", arch.hidden_size)
        if arch.tied_embeddings:
            self._used.add("lm_head.weight")  # some checkpoints store the copy as well
            lm_head = Linear(embedding)
        else:
            lm_head = self._linear({"lm_head": arch.vocab_size}, arch.hidden_size)
        divisors = None
        if _ROPE_DIVISORS in self._source.names:
            divisors = torch.empty(arch.head_dim // 2)
            self._copy(_ROPE_DIVISORS, divisors)
        self._refuse_unused()
        return Decoder(arch, embedding, layers, norm, lm_head, divisors, self._num_bytes)

    def _layer(self, prefix: str) -> Layer:
        arch = self._architecture
        heads, kv_heads, size = arch.num_heads, arch.num_kv_heads, arch.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        head_norm = None
        if arch.qk_norm:
            norms = [self._vector(f"{attention}.{which}_norm.weight", size) for which in "qk"]
            head_norm = torch.cat([norms[0].expand(heads, size), norms[1].expand(kv_heads, size)])
        return Layer(
            input_norm=self._vector(f"{prefix}.input_layernorm.weight", arch.hidden_size),
            qkv=self._linear(
                {
                    f"{attention}.q_proj": heads * size,
                    f"{attention}.k_proj": kv_heads * size,
                    f"{attention}.v_proj": kv_heads * size,
                },
                arch.hidden_size,
                bias=arch.qkv_bias,
            ),
            head_norm=head_norm,
            output=self._linear({f"{attention}.o_proj": arch.hidden_size}, heads * size),
            mlp_norm=self._vector(f"{prefix}.post_attention_layernorm.weight", arch.hidden_size),
            gate_up=self._linear(
                {f"{mlp}.gate_proj": arch.intermediate_size, f"{mlp}.up_proj": arch.intermediate_size},
                arch.hidden_size,
            ),
            down=self._linear({f"{mlp}.down_proj": arch.hidden_size}, arch.intermediate_size),
        )

    def _linear(self, parts: dict[str, int], num_inputs: int, bias: bool = False) -> Linear:
        """Load modules that read the same input as one, stacked by output row."""
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
