"""The decoder of the Llama family in PyTorch's operators: embeddings, layers, logits."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.architecture import Architecture, RopeSettings
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.attention import is_attention_even
from stoker_runtime.model.batch import pack_batch
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.layer import rms_norm
from stoker_runtime.model.linear import EvenProducts, PackedLinear, packed
from stoker_runtime.model.picker import TorchPicker
from stoker_runtime.model.rope import Rope

logger = logging.getLogger(__name__)


class Decoder:
    """A loaded model. Holds no state between steps; the KV cache is an argument.

    Args:
        architecture: of the model.
        assembly: has its weights.

    Raises:
        ModelError: see Assembly.
    """

    def __init__(self, architecture: Architecture, assembly: Assembly) -> None:
        self.architecture = architecture
        even = EvenProducts()
        self._layers = [layer.mapped(packed).mapped(even) for layer in assembly.layers()]
        frame = assembly.frame()
        self._embedding = frame.table
        self._norm = frame.norm
        lm_head = packed(frame.lm_head)
        self._lm_head = even(lm_head)
        self._rope_divisors = frame.rope_divisors
        self._ropes: dict[RopeSettings, Rope] | None = None
        self.num_bytes = assembly.num_bytes
        if isinstance(lm_head, PackedLinear) and frame.is_tied:
            self.num_bytes += self._embedding.nbytes  # packing made a copy
        self.picker = TorchPicker()
        if self.device.type == "cpu" and not is_attention_even(architecture.head_dim):
            logger.warning(
                "attention depends on the batch on this CPU: a request's text may differ in another batch"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, the activations and, unless it is fp8, the KV cache."""
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

    def __call__(self, plan: StepPlan, cache: KVCache) -> Tensor:
        """Compute one step.

        Args:
            plan: what to compute.
            cache: keys and values so far; those of the plan's tokens are added.

        Returns:
            Logits of the rows that StepPlan.logit_rows names, in its order, [B, V] float32.
        """
        assert self._ropes is not None, "set_max_positions comes first"
        architecture = self.architecture
        if not plan.requests:
            return torch.empty(0, architecture.vocab_size, device=self.device)
        scales = architecture.scales
        batch = pack_batch(
            plan,
            cache.block_size,
            architecture.windows,
            architecture.num_heads,
            architecture.num_kv_heads,
            self.device,
        )
        hidden = F.embedding(batch.token_ids, self._embedding)
        if scales.embedding != 1:
            hidden = hidden * scales.embedding
        angles = {settings: rope.at(batch.positions) for settings, rope in self._ropes.items()}
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, angles, cache.layer(index), batch, architecture)
        hidden = hidden[batch.sampled_rows]
        normed = rms_norm(hidden, self._norm, architecture.rms_norm_eps)
        logits = self._lm_head(normed).float()
        if scales.logits != 1:
            logits = logits / scales.logits
        return (
            logits if scales.logits_cap is None else (logits / scales.logits_cap).tanh_() * scales.logits_cap
        )
