"""What a model is: its sizes and the few switches between the families of Llama-like decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stoker_runtime.errors import ModelError

# Where queries and keys are normalised before rope: each head by itself (Qwen 3), or all heads of a
# projection together (OLMo 2).
QkNorm = Literal["head", "projection"]


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's rope scaling: low frequencies divided by `factor`, high ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class Family:
    """What all models of a family have in common.

    Args:
        qkv_bias: the projections of queries, keys and values have biases (Qwen 2).
        qk_norm: where queries and keys are normalised, if they are.
        norms_outputs: attention and MLP are normalised behind instead of before (OLMo 2).
        has_fused_projections: checkpoints hold queries, keys and values as one tensor, gate and up as well
            (Phi 3).
    """

    qkv_bias: bool = False
    qk_norm: QkNorm | None = None
    norms_outputs: bool = False
    has_fused_projections: bool = False


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ between the layers of one model.

    Args:
        window: tokens that a token attends to, itself included; None for all before it.
        has_rope: queries and keys are rotated (SmolLM 3 leaves some layers out).
    """

    window: int | None = None
    has_rope: bool = True


@dataclass(frozen=True, slots=True)
class Scales:
    """Constant factors (Granite).

    Args:
        embedding: of the embeddings.
        residual: of what each attention and MLP adds.
        attention: of the attention scores; None for 1 / sqrt(head_dim).
        logits: what the logits are divided by.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that shapes the computation, whatever file it came from."""

    name: str  # as the file spells it
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tied_embeddings: bool  # lm_head is the embedding table
    stored_dtype: str | None  # what the file's weights are, when it says
    layers: tuple[LayerKind, ...]
    scales: Scales = Scales()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for field in (*sizes, "head_dim", "max_position"):
            if getattr(self, field) < 1:
                raise ModelError(f"the model's {field} is {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"the model's head_dim is {self.head_dim}; rotary embedding needs an even one")

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows of the layers, in the order of their first layer."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))
