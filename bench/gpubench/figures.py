"""From times to what they are measured by: bytes that had to be read, products that had to be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stoker_runtime.model.architecture import Architecture

# Vendors' figures without sparsity: bytes per second of memory, bfloat16 operations per second.
_PEAKS = {
    "H200": (4.8e12, 989e12),
    "H100 80GB HBM3": (3.35e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "A100-SXM4-80GB": (2.04e12, 312e12),
    "A100-SXM4-40GB": (1.555e12, 312e12),
    "A10": (0.6e12, 125e12),
    "L40S": (0.864e12, 362e12),
    "L4": (0.3e12, 121e12),
    "RTX 4090": (1.008e12, 165e12),
}


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device can do at best, per second."""

    bytes: float
    operations: float


def peak_of(device_name: str) -> Peak | None:
    """Return a known device's peak; the longest name that fits counts."""
    fitting = [name for name in _PEAKS if name in device_name]
    return Peak(*_PEAKS[max(fitting, key=len)]) if fitting else None


def weight_bytes(architecture: Architecture, loaded_bytes: int, itemsize: int, num_rows: int) -> float:
    """Bytes of weights that a step of so many rows reads.

    That is all but the table of embeddings, of which it reads some rows, and the experts that no row chooses:
    random weights choose them evenly, which leaves (1 - K / N) ** rows of them unread.
    """
    read = loaded_bytes - _expert_bytes(architecture, itemsize) * _unchosen(architecture) ** num_rows
    if architecture.tied_embeddings:
        return read
    return read - architecture.vocab_size * architecture.hidden_size * itemsize


def _expert_bytes(architecture: Architecture, itemsize: int) -> int:
    """Bytes of all experts."""
    settings = architecture.experts
    if settings is None:
        return 0
    of_layer = 3 * settings.num_experts * settings.intermediate_size * architecture.hidden_size * itemsize
    return of_layer * sum(layer.is_sparse for layer in architecture.layers)


def _unchosen(architecture: Architecture) -> float:
    """The share of a mixture's experts that a row does not go through."""
    settings = architecture.experts
    return 0.0 if settings is None else 1 - settings.num_per_token / settings.num_experts


def kv_bytes_per_token(architecture: Architecture, itemsize: int) -> int:
    """Bytes of keys and values of one token of context, over all layers."""
    return 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim * itemsize


def achieved_bandwidth(weights: float, kv_per_token: int, contexts: Sequence[int], step_s: float) -> float:
    """Bytes per second that a step of decodes read at least: (weights + sum(context) * KV bytes) / time."""
    return (weights + sum(contexts) * kv_per_token) / step_s


def prefill_operations(
    architecture: Architecture, loaded_bytes: int, itemsize: int, num_tokens: int
) -> float:
    """Multiplications and additions of one prompt: twice the weights per token, and causal attention.

    The vocabulary's rows are multiplied with the last token alone; of a mixture a token's own experts count.
    """
    weights = weight_bytes(architecture, loaded_bytes, itemsize, num_rows=1)
    head_bytes = architecture.vocab_size * architecture.hidden_size * itemsize
    products = 2 * num_tokens * (weights - head_bytes) / itemsize + 2 * head_bytes / itemsize
    seen = num_tokens * (num_tokens + 1) / 2
    return products + 4 * architecture.num_layers * architecture.num_heads * architecture.head_dim * seen
