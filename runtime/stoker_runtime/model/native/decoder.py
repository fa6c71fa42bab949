"""The decoder on a CPU, each step one call to the library."""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from stoker_runtime.config import Quantization
from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.architecture import Architecture, RopeSettings
from stoker_runtime.model.assembly import Assembly, Frame
from stoker_runtime.model.checkpoint.blocks import BlockLinear, BlockTensor
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.layer import HeadNorms, Layer, ProjectionNorms
from stoker_runtime.model.linear import Linear, Product
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.native import structs
from stoker_runtime.model.native.library import GROUP, Kernels, fits_panels
from stoker_runtime.model.native.picker import NativePicker
from stoker_runtime.model.rope import Rope

logger = logging.getLogger(__name__)

_LANES = 16  # kLanes of csrc/element.h
_MAX_HEAD_DIM = 256  # kMaxHeadDim of csrc/attention.h


def is_computed(architecture: Architecture, block_size: int, quantization: Quantization) -> bool:
    """Tell whether the library computes such a model: one whose sizes fill its vectors."""
    sizes = {architecture.hidden_size, architecture.num_heads * architecture.head_dim}
    for layer in architecture.layers:
        experts = architecture.experts if layer.is_sparse else None
        sizes.add(architecture.intermediate_size if experts is None else experts.intermediate_size)
    unit = 2 if quantization == "none" else GROUP
    return (
        architecture.head_dim % _LANES == 0
        and architecture.head_dim <= _MAX_HEAD_DIM
        and block_size % _LANES == 0
        and all(size % unit == 0 for size in sizes)
    )


class NativeDecoder:
    """A loaded model; the counterpart of `decoder.Decoder` and interchangeable with it.

    The KV cache's bytes are the same in number but lie otherwise (csrc/kv.h): a cache belongs to one decoder.

    Args:
        architecture: one that `is_computed`.
        assembly: has its weights, in the kernels' dtype.
        kernels: compute the steps.
        quantization: of the weights; beside bfloat16 only. With gguf the assembly keeps blocks.

    Raises:
        ModelError: see Assembly.
    """

    device = torch.device("cpu")

    def __init__(
        self, architecture: Architecture, assembly: Assembly, kernels: Kernels, quantization: Quantization
    ) -> None:
        self.architecture = architecture
        self.dtype = kernels.dtype
        self._kernels = kernels
        self._is_quantized = quantization == "int8"
        # All experts of a model have integer products or none has (Mixture of csrc/experts.h).
        self._rounds_experts = quantization != "none"
        self._kept: list[object] = []  # what the structs point to
        self._tally = _Tally()
        self._layers = (structs.Layer * architecture.num_layers)(*self._packed_layers(assembly))
        frame = assembly.frame()
        self._rope_divisors = frame.rope_divisors
        self._model = self._describe(frame)
        if quantization == "gguf":
            logger.info("GGUF weights: %s", self._tally)
        # As they lie in memory: packed, rounded to int8 where that was asked for, tied ones twice.
        self.num_bytes = sum(kept.nbytes for kept in self._kept if isinstance(kept, Tensor))
        self.picker = NativePicker(kernels)

    def set_max_positions(self, count: int) -> None:
        """Make the tables of rotary angles; needed once, before the first step."""
        ropes = {
            settings: Rope(settings, count, self.dtype, self.device, self._rope_divisors)
            for settings in self.architecture.ropes
        }
        for struct, kind in zip(self._layers, self.architecture.layers, strict=True):
            if kind.rope is not None:
                self._set_rope(struct, kind.rope, ropes)

    def __call__(self, plan: StepPlan, cache: KVCache) -> Tensor:
        """Compute one step; see decoder.Decoder."""
        token_ids, block_ids = array("i"), array("i")
        first_rows: list[int] = []
        sequences = (structs.Sequence * len(plan.requests))()
        for struct, request in zip(sequences, plan.requests, strict=True):
            first_rows.append(len(token_ids))
            struct.first_row = first_rows[-1]
            struct.num_tokens = len(request.token_ids)
            struct.num_computed = request.num_computed_tokens
            struct.first_block = len(block_ids)
            token_ids.extend(request.token_ids)
            block_ids.extend(request.block_ids)
        sampled_rows = array("i", plan.logit_rows(first_rows))
        step = structs.Step(
            len(token_ids),
            len(sequences),
            len(sampled_rows),
            token_ids.buffer_info()[0],
            ctypes.addressof(sequences),
            block_ids.buffer_info()[0],
            sampled_rows.buffer_info()[0],
        )
        logits = torch.empty(len(sampled_rows), self.architecture.vocab_size)
        where = structs.Cache(cache.storage.data_ptr(), cache.num_blocks, cache.block_size)
        self._kernels.step(self._model, step, where, logits)
        return logits

    def _describe(self, frame: Frame) -> structs.Model:
        arch, scales = self.architecture, self.architecture.scales
        lm_head = self._pack(frame.lm_head)
        table, blocks = None, None
        if isinstance(frame.embedding, Tensor):
            table = self._keep(frame.embedding)
        else:
            blocks = lm_head.parts if frame.is_tied else self._pack_table(frame.embedding)
        return structs.Model(
            num_layers=arch.num_layers,
            hidden_size=arch.hidden_size,
            intermediate_size=arch.intermediate_size,
            num_heads=arch.num_heads,
            num_kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
            vocab_size=arch.vocab_size,
            normalizes_projections=arch.family.qk_norm == "projection",
            has_gelu=arch.family.activation == "gelu_tanh",
            has_float_norms=frame.norm.dtype == torch.float32,
            eps=arch.rms_norm_eps,
            embedding_scale=scales.embedding,
            residual_scale=scales.residual,
            attention_scale=arch.head_dim**-0.5 if scales.attention is None else scales.attention,
            attention_cap=scales.attention_cap or 0.0,
            logits_divisor=scales.logits,
            logits_cap=scales.logits_cap or 0.0,
            embedding=table,
            norm=self._keep(frame.norm),
            lm_head=lm_head,
            layers=ctypes.addressof(self._layers),
            embedding_part=blocks,
        )

    def _packed_layers(self, assembly: Assembly) -> list[structs.Layer]:
        """Pack each layer while the next one is read; no more than two are unpacked at a time."""
        packed: list[Future[structs.Layer]] = []
        with ThreadPoolExecutor(1) as packer:
            for layer in assembly.layers():
                packed.append(packer.submit(self._layer, layer))
                if len(packed) > 1:
                    packed[-2].result()
        return [layer.result() for layer in packed]

    def _layer(self, layer: Layer) -> structs.Layer:
        query_norm, key_norm = _head_norms(layer.qk_norms, self.architecture.num_heads)
        struct = structs.Layer(
            qkv=self._pack(layer.qkv),
            output=self._pack(layer.output),
            attention_before=self._keep(layer.attention_norms.before),
            attention_behind=self._keep(layer.attention_norms.behind),
            mlp_before=self._keep(layer.mlp_norms.before),
            mlp_behind=self._keep(layer.mlp_norms.behind),
            query_norm=self._keep(query_norm),
            key_norm=self._keep(key_norm),
            window=layer.kind.window or 0,
        )
        if isinstance(layer.mlp, Mlp):
            struct.gate_up = self._pack(layer.mlp.gate_up, is_pair=True)
            struct.down = self._pack(layer.mlp.down)
        else:
            experts = self._experts(layer.mlp)
            self._kept.append(experts)
            struct.experts = ctypes.addressof(experts)
        return struct

    def _experts(self, mixture: Experts) -> structs.Experts:
        count = len(mixture.experts)
        gate_up, down = (structs.Linear * count)(), (structs.Linear * count)()
        for index, expert in enumerate(mixture.experts):
            gate_up[index] = self._pack_expert(expert.gate_up, is_pair=True)
            down[index] = self._pack_expert(expert.down)
        self._kept += [gate_up, down]
        # Never quantized: few weights, and they decide which of the others are used.
        router, kept = self._kernels.packed(Linear(mixture.router))
        self._kept += kept
        return structs.Experts(
            router=router,
            gate_up=ctypes.addressof(gate_up),
            down=ctypes.addressof(down),
            num_experts=count,
            num_per_token=mixture.num_per_token,
            intermediate_size=down[0].num_inputs,
            normalizes_weights=mixture.normalizes_weights,
        )

    def _set_rope(
        self, struct: structs.Layer, settings: RopeSettings, ropes: Mapping[RopeSettings, Rope]
    ) -> None:
        rope = ropes[settings]
        struct.cosines, struct.sines = self._keep(rope.cos), self._keep(rope.sin)
        struct.rotary_dim = settings.rotary_dim

    def _pack(self, linear: Product, is_pair: bool = False) -> structs.Linear:
        if isinstance(linear, BlockLinear):
            return self._pack_blocks(linear, is_pair)
        assert isinstance(linear, Linear), "no layer of a CPU's assembly is packed"
        struct, kept = self._kernels.packed(linear, is_pair, self._is_quantized)
        self._kept += kept
        self._tally.num_plain += 1
        return struct

    def _pack_expert(self, linear: Product, is_pair: bool = False) -> structs.Linear:
        if isinstance(linear, Linear) and self._rounds_experts:
            return self._pack_rounded(linear, is_pair)
        return self._pack(linear, is_pair)

    def _pack_rounded(self, linear: Linear, is_pair: bool, num_matrices: int = 1) -> structs.Linear:
        struct, kept = self._kernels.packed(linear, is_pair, is_quantized=True)
        self._kept += kept
        self._tally.num_rounded += num_matrices
        return struct

    def _pack_blocks(self, linear: BlockLinear, is_pair: bool) -> structs.Linear:
        joined = linear.joined()
        if not fits_panels(joined, is_pair):  # of a type without kernels, or several in a pair or a panel
            return self._pack_rounded(Linear(linear.weight(), linear.bias), is_pair, len(linear.parts))
        struct, kept = self._kernels.packed_blocks(joined, is_pair)
        self._tally.kept.update(FORMATS[part.type_id].name for part in linear.parts)
        self._kept += kept
        return struct

    def _pack_table(self, embedding: BlockTensor) -> int:
        return self._pack_blocks(BlockLinear((embedding,)), is_pair=False).parts  # type: ignore[no-any-return]

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


class _Tally:
    """What became of a GGUF file's matrices, for the log."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()  # tensors by type
        self.num_rounded = 0
        self.num_plain = 0

    def __str__(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in sorted(self.kept.items()))
        return (
            f"{self.kept.total()} matrices stay in their blocks ({types}), "
            f"{self.num_rounded} (of other or mixed types, or of experts) are rounded to int8, "
            f"{self.num_plain} products are bfloat16"
        )


def _head_norms(
    norms: HeadNorms | ProjectionNorms | None, num_heads: int
) -> tuple[Tensor | None, Tensor | None]:
    match norms:
        case None:
            return None, None
        case HeadNorms(weight):
            return weight[:num_heads], weight[num_heads:]
        case ProjectionNorms(query, key):
            return query, key
