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
class LinearScaling:
    """All frequencies divided by `factor` (Gemma 3)."""

    factor: float


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Low frequencies divided by `factor`, high ones kept, those between blended by their place (Qwen).

    Args:
        factor: how much longer the context becomes.
        original_max_position: tokens of the context before.
        beta_fast: turns in it from which a frequency is kept.
        beta_slow: turns in it up to which one is divided.
        truncates: the border places are rounded outwards.
        attention_factor: of cosines and sines.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncates: bool
    attention_factor: float


@dataclass(frozen=True, slots=True)
class LongScaling:
    """Each frequency divided by a number of its own (Phi's longrope, within its original context).

    Args:
        divisors: one for each pair.
        original_max_position: tokens that they are for.
        attention_factor: of cosines and sines.
    """

    divisors: tuple[float, ...]
    original_max_position: int
    attention_factor: float


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling | LongScaling


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """How queries and keys are rotated.

    Args:
        theta: base of the frequencies.
        rotary_dim: elements of each head that are rotated, the first ones.
        scaling: of the frequencies.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by, which scales attention scores by its square."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling | LongScaling) else 1.0


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """How a family's checkpoints name the parts of a mixture: `MODULE.gate`, `MODULE.experts.N.GATE`."""

    module: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """A sparse mixture in place of the MLP, in the layers that have one.

    Args:
        num_experts: in each such layer.
        num_per_token: how many each token goes through.
        intermediate_size: of one expert.
        normalizes_weights: the weights of a token's experts are made to add up to 1.
    """

    num_experts: int
    num_per_token: int
    intermediate_size: int
    normalizes_weights: bool


@dataclass(frozen=True, slots=True)
class Family:
    """What all models of a family have in common.

    Args:
        qkv_bias: the projections of queries, keys and values have biases (Qwen 2).
        qk_norm: where queries and keys are normalised, if they are.
        norms: whether attention and MLP are normalised before, behind (OLMo 2) or both (Gemma).
        norm_offset: added to the weights of all norms, in float32: such norms are computed in it and rounded
            once (Gemma: 1, or 0 where the file's weights have it). None: norms are of the model's dtype.
        activation: of the MLP's gate.
        has_fused_projections: checkpoints hold queries, keys and values as one tensor, gate and up as well
            (Phi 3).
        expert_names: of the families whose layers may be mixtures.
    """

    qkv_bias: bool = False
    qk_norm: QkNorm | None = None
    norms: Literal["inputs", "outputs", "both"] = "inputs"
    norm_offset: float | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    has_fused_projections: bool = False
    expert_names: ExpertNames | None = None


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ between the layers of one model.

    Args:
        rope: None where nothing is rotated (SmolLM 3 has such layers).
        window: tokens that a token attends to, itself included; None for all before it.
        is_sparse: experts take the place of the MLP.
    """

    rope: RopeSettings | None
    window: int | None = None
    is_sparse: bool = False


@dataclass(frozen=True, slots=True)
class Scales:
    """Constant factors and caps. A cap turns x into cap * tanh(x / cap) (Gemma 2).

    Args:
        embedding: of the embeddings.
        rounds_embedding: that factor is rounded to the weights' type first, as Gemma was trained.
        residual: of what each attention and MLP adds.
        attention: of the attention scores; None for 1 / sqrt(head_dim).
        attention_cap: of the scaled scores, if any.
        logits: what the logits are divided by.
        logits_cap: of the logits, if any.
    """

    embedding: float = 1.0
    rounds_embedding: bool = False
    residual: float = 1.0
    attention: float | None = None
    attention_cap: float | None = None
    logits: float = 1.0
    logits_cap: float | None = None


@dataclass(frozen=True, slots=True)
class GptqStorage:
    """Weights as AutoGPTQ packs them, four or eight bits each.

    Args:
        bits: of a code, 4 or 8.
        group_size: inputs that share a scale; None for all of a module's.
        zero_offset: what is added to stored zero points; files store them less one, unless they are gptq_v2.
    """

    bits: int
    group_size: int | None
    zero_offset: int


@dataclass(frozen=True, slots=True)
class AwqStorage:
    """Weights as AutoAWQ packs them for its GEMM kernels, four bits each.

    Args:
        group_size: inputs that share a scale; None for all of a module's.
    """

    group_size: int | None


@dataclass(frozen=True, slots=True)
class Fp8Storage:
    """Weights in float8_e4m3fn with scales beside them.

    Args:
        block: outputs and inputs that share a scale; None for one scale for all or for each output.
        rounds_inputs: activations are meant to be fp8 as well, where the device has such products.
    """

    block: tuple[int, int] | None
    rounds_inputs: bool


Storage = GptqStorage | AwqStorage | Fp8Storage


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
    tied_embeddings: bool  # lm_head is the embedding table
    stored_dtype: str | None  # what the file's weights are, when it says
    layers: tuple[LayerKind, ...]
    scales: Scales = Scales()
    experts: ExpertSettings | None = None
    storage: Storage | None = None  # how the file's weights are quantized, when they are
    wrapper: str | None = None  # the architecture of a model for images, too, of which this is the text part

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for field in (*sizes, "head_dim", "max_position"):
            if getattr(self, field) < 1:
                raise ModelError(f"the model's {field} is {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} heads cannot share {self.num_kv_heads} KV heads evenly")
        experts = self.experts
        if experts is not None and not 1 <= experts.num_per_token <= experts.num_experts:
            raise ModelError(f"{experts.num_per_token} of {experts.num_experts} experts cannot be picked")
        for rope in self.ropes:
            if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= self.head_dim:
                raise ModelError(
                    f"{rope.rotary_dim} elements of each head, whose head_dim is {self.head_dim}, cannot be "
                    "rotated: an even number is needed"
                )

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def ropes(self) -> tuple[RopeSettings, ...]:
        """The distinct rotations of the layers, in the order of their first layer."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows of the layers, in the order of their first layer."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))
