"""Numbers that host and kernels must agree on, without Triton."""

from __future__ import annotations

from dataclasses import dataclass

from stoker_runtime.model.architecture import Architecture, LayerKind

SPLIT_TOKENS = (
    256  # of a context that one program attends over, at least: its result costs 3 % of the reading
)
MAX_SPLITS = 32  # of one context; longer contexts get longer splits, so the partial results stay small


def split_tokens(context: int) -> int:
    """Tokens per split of a context. Depends on nothing else, so results do not depend on the batch."""
    return SPLIT_TOKENS * max(1, -(-context // (SPLIT_TOKENS * MAX_SPLITS)))


def num_splits(context: int) -> int:
    """How many splits a context has: 0 to MAX_SPLITS."""
    return -(-context // split_tokens(context))


def max_splits(longest: int) -> int:
    """Return the most splits that a context of at most `longest` tokens has."""
    return num_splits(min(longest, SPLIT_TOKENS * MAX_SPLITS))


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer weighs what a token sees.

    Args:
        scale: of the scores.
        cap: turns scaled scores into cap * tanh(score / cap), if given.
        window: tokens that a token attends to, itself included; None for all before it.
    """

    scale: float
    cap: float | None = None
    window: int | None = None


def heads_of(architecture: Architecture) -> Heads:
    """Return a model's heads."""
    return Heads(architecture.num_heads, architecture.num_kv_heads, architecture.head_dim)


def scoring_of(architecture: Architecture, kind: LayerKind) -> Scoring:
    """Return how a layer of a model scores."""
    scales = architecture.scales
    scale = architecture.head_dim**-0.5 if scales.attention is None else scales.attention
    return Scoring(scale, scales.attention_cap, kind.window)
