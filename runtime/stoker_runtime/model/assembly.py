"""Puts a model's tensors together: which of a checkpoint's names go where, layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import Architecture, ExpertNames, ExpertSettings, LayerKind
from stoker_runtime.model.checkpoint.blocks import BlockLinear, BlockTensor
from stoker_runtime.model.checkpoint.weights import WeightSource
from stoker_runtime.model.layer import HeadNorms, Layer, Norms, ProjectionNorms
from stoker_runtime.model.linear import Linear, Product
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.source import QuantizedSource
from stoker_runtime.model.quantized.weight import QuantizedWeight, fp8_rounded, stacked

# In some checkpoints, and always recomputed from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
_HEAD = "lm_head.weight"
_ROPE_DIVISORS = "rope_freqs.weight"  # Llama 3's scaling, as GGUF files carry it


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a model has besides its layers.

    Args:
        embedding: of the tokens; in blocks if the assembly keeps them.
        norm: of what the last layer leaves.
        lm_head: rows of the vocabulary.
        rope_divisors: of the rotations' frequencies, where a file carries them, [D / 2] float32.
    Shapes:
        embedding [V, E], norm [E]
    """

    embedding: Tensor | BlockTensor
    norm: Tensor
    lm_head: Linear | BlockLinear
    rope_divisors: Tensor | None

    @property
    def table(self) -> Tensor:
        """The embedding of an assembly that keeps no blocks."""
        assert isinstance(self.embedding, Tensor), "blocks are for the C++ kernels"
        return self.embedding

    @property
    def is_tied(self) -> bool:
        """Whether the rows of lm_head are those of the embedding, in one place."""
        head = self.lm_head.weight if isinstance(self.lm_head, Linear) else self.lm_head.parts[0]
        return head is self.embedding


class Assembly:
    """Loads tensor after tensor into its place and remembers which names it used.

    Args:
        architecture: what the model should hold.
        source: where its tensors are.
        dtype: of every weight.
        device: where they go.
    """

    def __init__(
        self, architecture: Architecture, source: WeightSource, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._architecture = architecture
        self._source = source
        self.dtype = dtype
        self.device = device
        self._keeps_quantized, self._rounds_to_fp8 = False, False
        self._used: set[str] = set()
        self.num_bytes = 0  # of the weights loaded so far

    def keep_quantized(self, rounds_to_fp8: bool) -> None:
        """Make the layers' linear modules QuantizedLinear instead of dequantizing them; comes first.

        Args:
            rounds_to_fp8: round what is stored in plain numbers; else it stays as it is.
        """
        self._keeps_quantized, self._rounds_to_fp8 = True, rounds_to_fp8

    def layers(self) -> Iterator[Layer]:
        """Load the layers one by one, so that whoever packs them holds one unpacked layer at a time.

        Raises:
            ModelError: a tensor is missing or has another shape than the configuration says.
        """
        for index, kind in enumerate(self._architecture.layers):
            yield self._layer(f"model.layers.{index}", kind)

    def frame(self) -> Frame:
        """Load the rest; comes after the layers.

        Raises:
            ModelError: as for layers, or a tensor is in the files but in no place of this architecture.
        """
        arch = self._architecture
        embedding = self._product({"model.embed_tokens": arch.vocab_size}, arch.hidden_size)
        norm = self._norm("model.norm", arch.hidden_size)
        lm_head = self._head(embedding)
        divisors = None
        if _ROPE_DIVISORS in self._source.names:
            divisors = torch.empty(arch.head_dim // 2)
            self._copy(_ROPE_DIVISORS, divisors)
        self._refuse_unused()
        table = embedding.weight if isinstance(embedding, Linear) else embedding.parts[0]
        return Frame(table, norm, lm_head, divisors)

    def _head(self, embedding: Linear | BlockLinear) -> Linear | BlockLinear:
        """Load what gives the logits: its own rows, or the embeddings where they are tied.

        Some checkpoints of tied models store a copy as well. One that differs says that they are not tied and
        counts more than the configuration, as in `transformers`.
        """
        arch = self._architecture
        if arch.tied_embeddings and _HEAD not in self._source.names:
            return embedding
        num_bytes = self.num_bytes
        head = self._product({"lm_head": arch.vocab_size}, arch.hidden_size)
        if not arch.tied_embeddings:
            return head
        if not _is_copy(head, embedding):
            logger.warning(
                "tie_word_embeddings is true, but %s is no copy of the embeddings: it is used", _HEAD
            )
            return head
        self.num_bytes = num_bytes
        return embedding

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
        module, stacks = f"{prefix}.{names.module}", None
        modules = [f"{module}.experts.{index}" for index in range(settings.num_experts)]
        if not self._stacks_experts:  # weights of their own layouts, which only kernels stack
            size = settings.intermediate_size
            experts = [
                self._mlp(one, {names.gate: size, names.up: size}, names.down, size) for one in modules
            ]
        else:
            stacks = self._expert_stacks(modules, names, settings)
            activation = self._architecture.family.activation
            experts = [Mlp(Linear(up), Linear(down), activation) for up, down in zip(*stacks, strict=True)]
        return Experts(
            router=self._rows("weight", {f"{module}.gate": len(modules)}, self._architecture.hidden_size),
            experts=tuple(experts),
            num_per_token=settings.num_per_token,
            normalizes_weights=settings.normalizes_weights,
            stacks=stacks,
        )

    @property
    def _stacks_experts(self) -> bool:
        return not self._keeps_quantized

    def _expert_stacks(
        self, modules: Sequence[str], names: ExpertNames, settings: ExpertSettings
    ) -> tuple[Tensor, Tensor]:
        """Load gate and up, and down, of all experts: [N, 2 * intermediate, E] and [N, E, intermediate]."""
        count, size, hidden_size = len(modules), settings.intermediate_size, self._architecture.hidden_size
        gate_up, down = self._empty(count, 2 * size, hidden_size), self._empty(count, hidden_size, size)
        for index, module in enumerate(modules):
            parts = {f"{module}.{name}": size for name in (names.gate, names.up)}
            self._fill(gate_up[index], "weight", parts)
            self._fill(down[index], "weight", {f"{module}.{names.down}": hidden_size})
        return gate_up, down

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
        name, offset = f"{module}.weight", self._architecture.family.norm_offset
        if offset is None:
            return self._vector(name, size, self.dtype)
        if not offset:
            return self._vector(name, size, torch.float32)
        # Rounded before the addition and not behind it, as in `transformers`.
        weight = self._vector(name, size, self.dtype)
        widened = weight.float() + offset
        self.num_bytes += widened.nbytes - weight.nbytes
        return widened

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

    def _linear(self, prefix: str, modules: dict[str, int], num_inputs: int, bias: bool = False) -> Product:
        """Load modules that read the same input as one, stacked by output row."""
        parts = {f"{prefix}.{name}": rows for name, rows in modules.items()}
        kept = self._kept(parts, num_inputs) if self._keeps_quantized else None
        if kept is None:
            return self._product(parts, num_inputs, bias)
        return QuantizedLinear(kept, self._rows("bias", parts) if bias else None)

    def _product(self, parts: dict[str, int], num_inputs: int, bias: bool = False) -> Linear | BlockLinear:
        return Linear(self._rows("weight", parts, num_inputs), self._rows("bias", parts) if bias else None)

    def _kept(self, parts: dict[str, int], num_inputs: int) -> tuple[QuantizedWeight, ...] | None:
        """Quantized weights, as they are stored or rounded here; None where plain ones are to be loaded."""
        weights: list[QuantizedWeight] = []
        for module, rows in parts.items():
            shape = (rows, num_inputs)
            found = (
                self._source.quantized(module, shape) if isinstance(self._source, QuantizedSource) else None
            )
            if found is None:
                break
            weights.append(found.to(self.device))
            self._used.add(f"{module}.weight")
        kept: tuple[QuantizedWeight, ...] | None = None
        if len(weights) == len(parts):
            kept = stacked(weights)
        elif self._rounds_to_fp8:
            plain = self._rows("weight", parts, num_inputs)
            self.num_bytes -= plain.nbytes
            kept = (fp8_rounded(plain),)
        if kept is not None:
            self.num_bytes += sum(weight.num_bytes for weight in kept)
        return kept

    def _rows(self, kind: str, parts: dict[str, int], *trailing: int) -> Tensor:
        stacked = self._empty(sum(parts.values()), *trailing)
        self._fill(stacked, kind, parts)
        return stacked

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def _fill(self, stacked: Tensor, kind: str, parts: dict[str, int]) -> None:
        first = 0
        for module, rows in parts.items():
            self._copy(f"{module}.{kind}", stacked[first : first + rows])
            first += rows
        self.num_bytes += stacked.nbytes

    def _vector(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        vector = torch.empty(size, dtype=dtype, device=self.device)
        self._copy(name, vector)
        self.num_bytes += vector.nbytes
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


def _is_copy(head: Linear | BlockLinear, embedding: Linear | BlockLinear) -> bool:
    if isinstance(head, Linear) and isinstance(embedding, Linear):
        return torch.equal(head.weight, embedding.weight)
    if isinstance(head, BlockLinear) and isinstance(embedding, BlockLinear):
        (own,), (table,) = head.parts, embedding.parts
        return own.type_id == table.type_id and torch.equal(own.blocks, table.blocks)
    return False
