"""The decoder of the Llama family: embeddings, layers, logits; `build_decoder` loads one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Architecture, LayerKind, RopeSettings
from stoker_runtime.model.batch import Batch
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.layer import HeadNorms, Layer, Norms, ProjectionNorms
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.rope import Rope
from stoker_runtime.model.weights import WeightSource

# In some checkpoints, and always recomputed from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_ROPE_DIVISORS = "rope_freqs.weight"  # Llama 3's scaling, as GGUF files carry it


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
        self._ropes: dict[RopeSettings, Rope] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, the activations and the KV cache."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    def set_max_positions(self, count: int) -> None:
        """Make the tables of rotary angles; needed once, before the first step."""
        self._ropes = {
            settings: Rope(settings, count, self.dtype, self.device, self._rope_divisors)
            for settings in self.architecture.ropes
        }

    def __call__(self, batch: Batch, cache: KVCache) -> Tensor:
        """Compute one step.

        Returns:
            Logits of the rows that sample, [len(batch.sampled_rows), V] float32.
        """
        assert self._ropes is not None, "set_max_positions comes first"
        scales = self.architecture.scales
        hidden = F.embedding(batch.token_ids, self._embedding)
        if scales.embedding != 1:
            hidden = hidden * scales.embedding
        angles = {settings: rope.at(batch.positions) for settings, rope in self._ropes.items()}
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, angles, cache.layer(index), batch, self.architecture)
        hidden = hidden[batch.sampled_rows]
        normed = F.rms_norm(hidden, hidden.shape[-1:], self._norm, self.architecture.rms_norm_eps)
        logits = self._lm_head(normed).float()
        if scales.logits != 1:
            logits = logits / scales.logits
        return (
            logits if scales.logits_cap is None else (logits / scales.logits_cap).tanh_() * scales.logits_cap
        )


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
        norm = self._norm("model.norm", arch.hidden_size)
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
        attention = f"{prefix}.self_attn"
        qkv = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        if arch.family.has_fused_projections:  # one tensor, with the same parts in the same order
            qkv = {"qkv_proj": sum(qkv.values())}
        attention_norms, mlp_norms = self._layer_norms(prefix)
        return Layer(
            kind=kind,
            attention_norms=attention_norms,
            qkv=self._linear(attention, qkv, arch.hidden_size, bias=arch.family.qkv_bias),
            qk_norms=self._qk_norms(attention),
            output=self._linear(attention, {"o_proj": arch.hidden_size}, heads),
            mlp_norms=mlp_norms,
            mlp=self._experts(prefix) if kind.is_sparse else self._dense_mlp(f"{prefix}.mlp"),
        )

    def _dense_mlp(self, prefix: str) -> Mlp:
        size = self._architecture.intermediate_size
        if self._architecture.family.has_fused_projections:
            return self._mlp(prefix, {"gate_up_proj": 2 * size}, "down_proj", size)
        return self._mlp(prefix, {"gate_proj": size, "up_proj": size}, "down_proj", size)

    def _experts(self, prefix: str) -> Experts:
        names, settings = self._architecture.family.expert_names, self._architecture.experts
        assert names is not None, "a family without names has no sparse layers"
        assert settings is not None, "as the architecture's readers see to"
        module, size = f"{prefix}.{names.module}", settings.intermediate_size
        gate_up = {names.gate: size, names.up: size}
        return Experts(
            router=self._rows(
                "weight", {f"{module}.gate": settings.num_experts}, self._architecture.hidden_size
            ),
            experts=tuple(
                self._mlp(f"{module}.experts.{index}", gate_up, names.down, size)
                for index in range(settings.num_experts)
            ),
            num_per_token=settings.num_per_token,
            normalizes_weights=settings.normalizes_weights,
        )

    def _mlp(self, prefix: str, gate_up: dict[str, int], down: str, size: int) -> Mlp:
        hidden_size, activation = self._architecture.hidden_size, self._architecture.family.activation
        return Mlp(
            self._linear(prefix, gate_up, hidden_size),
            self._linear(prefix, {down: hidden_size}, size),
            activation,
        )

    def _layer_norms(self, prefix: str) -> tuple[Norms, Norms]:
        """Load the norms of attention and MLP; the name post_attention_layernorm means two things."""
        names: dict[str, tuple[str | None, ...]] = {
            "inputs": ("input", None, "post_attention", None),
            "outputs": (None, "post_attention", None, "post_feedforward"),
            "both": ("input", "post_attention", "pre_feedforward", "post_feedforward"),
        }
        size = self._architecture.hidden_size
        weights = [
            self._norm(f"{prefix}.{name}_layernorm", size) if name else None
            for name in names[self._architecture.family.norms]
        ]
        return Norms(*weights[:2]), Norms(*weights[2:])

    def _norm(self, module: str, size: int) -> Tensor:
        weight = self._vector(f"{module}.weight", size)
        offset = self._architecture.family.norm_offset
        return weight + offset if offset else weight

    def _qk_norms(self, prefix: str) -> HeadNorms | ProjectionNorms | None:
        arch = self._architecture
        query, key = f"{prefix}.q_norm", f"{prefix}.k_norm"
        match arch.family.qk_norm:
            case None:
                return None
            case "head":
                weights = ((query, arch.num_heads), (key, arch.num_kv_heads))
                spread = [self._norm(name, arch.head_dim).expand(count, -1) for name, count in weights]
                return HeadNorms(torch.cat(spread))
            case "projection":
                return ProjectionNorms(
                    self._norm(query, arch.num_heads * arch.head_dim),
                    self._norm(key, arch.num_kv_heads * arch.head_dim),
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
