"""The decoder over Triton's kernels; takes `decoder.Decoder`'s place where they work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.architecture import Architecture, RopeSettings
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.cuda import shapes
from stoker_runtime.model.cuda.block_tables import BlockTables
from stoker_runtime.model.cuda.choices import Decision
from stoker_runtime.model.cuda.chooser import Chooser
from stoker_runtime.model.cuda.chunk_attention import ChunkWork, tokens_per_tile
from stoker_runtime.model.cuda.decode_attention import DecodeWork, Partials, make_partials
from stoker_runtime.model.cuda.feed import feed
from stoker_runtime.model.cuda.fp8_linear import fp8_products_work, with_kernels
from stoker_runtime.model.cuda.graphs import Run
from stoker_runtime.model.cuda.input_buffer import InputBuffer
from stoker_runtime.model.cuda.launches import Launches
from stoker_runtime.model.cuda.layers import CudaLayer, StepTensors, make_scratch
from stoker_runtime.model.cuda.norms import add_and_norm
from stoker_runtime.model.cuda.picker import CudaPicker
from stoker_runtime.model.cuda.quantized_experts import stacked_mixture
from stoker_runtime.model.cuda.quantized_linear import KernelLinear
from stoker_runtime.model.cuda.recordings import Outputs, Recordings, make_recordings
from stoker_runtime.model.cuda.remembered import remembered
from stoker_runtime.model.cuda.rooms import Room, Rooms
from stoker_runtime.model.cuda.spans import are_long, spans_of
from stoker_runtime.model.cuda.step_layout import PackedStep, offsets, pack
from stoker_runtime.model.cuda.store_blocks import store_blocks
from stoker_runtime.model.cuda.tuning import Attention, Workload, choose_launches, choose_many_rows
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.layer import Layer
from stoker_runtime.model.linear import Product
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.picker import Picker
from stoker_runtime.model.rope import Rope

_SMALLEST_BUFFER = 1 << 16  # integers
_SMALLEST_SAMPLED = 1024  # tokens
_FEWEST_ROWS = 16  # requests

logger = logging.getLogger(__name__)


class CudaDecoder:
    """A loaded model on a CUDA device; the counterpart of `decoder.Decoder` and interchangeable with it.

    On a CPU it runs in Triton's interpreter, for tests.

    Args:
        architecture: one that `support.is_computed`.
        assembly: has its weights.

    Raises:
        ModelError: see Assembly.
    """

    def __init__(self, architecture: Architecture, assembly: Assembly) -> None:
        self.architecture = architecture
        self.dtype, self.device = assembly.dtype, assembly.device
        has_fp8 = fp8_products_work(self.dtype, self.device)
        change = partial(with_kernels, has_fp8_products=has_fp8)
        self._loaded = [_prepared(layer, change) for layer in assembly.layers()]
        self._frame = assembly.frame()
        self.num_bytes = assembly.num_bytes
        self.picker: Picker = CudaPicker()
        self._heads = shapes.heads_of(architecture)
        self._tokens_per_tile = tokens_per_tile(self._heads, self.dtype)
        self.decisions: tuple[Decision, ...] = ()
        self._launches = Launches.default(self._heads, self.dtype, self.device)
        self._ropes: dict[RopeSettings, Rope] = {}
        self._max_positions = 0
        self._layers: list[CudaLayer] = []
        self._buffer = InputBuffer(_SMALLEST_BUFFER, self.device)
        self._recordings: Recordings | None = None
        self._sampled = torch.zeros(_SMALLEST_SAMPLED, dtype=torch.int32, device=self.device)
        self._tables = BlockTables(0, 0)
        self._blocks = torch.zeros(0, dtype=torch.int32, device=self.device)

    def set_max_positions(self, count: int) -> None:
        """Make the tables of rotary angles; needed once, before the first step."""
        self._max_positions = count
        self._ropes = {
            settings: Rope(settings, count, self.dtype, self.device, self._frame.rope_divisors)
            for settings in self.architecture.ropes
        }
        self.set_launches(self._launches)

    def set_launches(self, launches: Launches) -> None:
        """Launch attention in this way from now on; only before anything is recorded."""
        assert self._recordings is None, "recordings have one way to launch"
        self._launches = launches
        if self._max_positions:
            ropes = self._ropes
            self._layers = [CudaLayer(layer, self.architecture, ropes, launches) for layer in self._loaded]

    def choose(self, block_size: int, kv_dtype: torch.dtype) -> None:
        """Choose by measurements; see runner.ChoosingDecoder."""
        with remembered(self.device) as chooser:
            self.choose_with(chooser, block_size, kv_dtype, Workload())

    @torch.inference_mode()
    def choose_with(
        self, chooser: Chooser, block_size: int, kv_dtype: torch.dtype, workload: Workload
    ) -> None:
        """Let a chooser choose launches, and from how many rows on quantized weights are dequantized."""
        longest = self._max_positions
        attention = Attention.of(self.architecture, longest, block_size, self.dtype, kv_dtype, self.device)
        self.set_launches(choose_launches(chooser, attention, workload))
        choose_many_rows(chooser, kernel_linears(self._loaded), self.dtype, workload.rows)
        self.decisions = tuple(chooser.decisions)

    @torch.inference_mode()
    def record(self, cache: KVCache, sizes: Sequence[int], token_sizes: Sequence[int]) -> None:
        """Record steps, in place of what was recorded before.

        Where that fails, steps are launched kernel by kernel; a line in the log says why.

        Args:
            cache: where it is used, the recordings replay.
            sizes: numbers of decodes, ascending; a step of decodes alone takes the smallest that holds it.
                The last one is the most requests of any recorded step. None: nothing is recorded.
            token_sizes: numbers of tokens of steps with chunks, likewise.

        Raises:
            torch.OutOfMemoryError: the device has no room for them.
        """
        self._recordings = None
        if sizes and sizes[-1] > len(self._sampled):
            self._sampled = torch.zeros(sizes[-1], dtype=torch.int32, device=self.device)
        if not sizes or any(layer.has_single_experts for layer in self._loaded):
            return
        max_blocks = self._make_room(sizes[-1], cache.block_size)
        max_splits = shapes.max_splits(self._max_positions)
        rooms = Rooms.of(sizes, token_sizes, self._tokens_per_tile)
        partials = make_partials(rooms.max_requests * max_splits, self._heads, self.device)
        architecture, most_rows = self.architecture, max(token_sizes, default=0)
        outputs = Outputs(
            logits=torch.empty(sizes[-1], architecture.vocab_size, device=self.device),
            normed=torch.empty(most_rows, architecture.hidden_size, dtype=self.dtype, device=self.device),
        )

        def make_run(room: Room, views: Mapping[str, Tensor]) -> Run:
            step = self._step(views, room.decodes, partials)
            if room.chunks:
                return self._mixed_run(step, cache, outputs.normed[: room.rows])
            return self._decodes_run(step, cache, outputs.logits[: room.rows])

        try:
            self._recordings = make_recordings(cache, rooms, max_splits, max_blocks, outputs, make_run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning(
                "steps are launched kernel by kernel, which is slower: recording failed: %s", error
            )

    def feed(self, token_ids: Tensor) -> None:
        """Keep what a step sampled for the placeholders of the next one; see runner.FeedingDecoder."""
        count = len(token_ids)
        if count > len(self._sampled):
            assert self._recordings is None, "recordings read the old place; `record` makes room for all rows"
            self._sampled = torch.zeros(2 * count, dtype=torch.int32, device=self.device)
        self._sampled[:count].copy_(token_ids)

    def __call__(self, plan: StepPlan, cache: KVCache) -> Tensor:
        """Compute one step; see decoder.Decoder. The logits are valid until the next step."""
        assert self._layers, "set_max_positions comes first"
        try:
            return self._compute(plan, cache)
        except BaseException:
            self._tables.forget()  # the device may lack what the step should have stored
            raise

    def _compute(self, plan: StepPlan, cache: KVCache) -> Tensor:
        recordings = self._recordings
        if recordings is not None and recordings.cache is cache:
            room = recordings.rooms.choose(plan)
            if room is not None:
                return self._replay(plan, recordings, room)
        self._make_room(len(plan.requests), cache.block_size)
        packed = pack(plan, cache.block_size, self._tokens_per_tile, tables=self._tables)
        field_sizes = {name: len(values) for name, values in packed.fields.items()}
        needed = offsets(field_sizes)[""]
        if needed > self._buffer.capacity:
            self._buffer = InputBuffer(2 * needed, self.device)
        views = self._upload(self._buffer, packed, field_sizes)
        step = self._step(views, packed.num_decodes, None)
        if self._launches.has_sdpa and cache.storage.dtype == self.dtype:
            spans = spans_of(packed.fields)
            step = replace(step, spans=spans if are_long(spans) else ())
        hidden, delta, delta_weight = self._hidden(step, cache)
        if not packed.samples_each:
            rows = views["sampled_rows"]
            hidden, delta = hidden[rows], None if delta is None else delta[rows]
        return self._logits(self._normed(hidden, delta, delta_weight, torch.empty_like(hidden)))

    def _replay(self, plan: StepPlan, recordings: Recordings, room: Room) -> Tensor:
        packed = pack(plan, recordings.cache.block_size, self._tokens_per_tile, room, self._tables)
        views = self._upload(recordings.buffer, packed, recordings.fields[room])
        recordings.replays[room]()
        rows = views["sampled_rows"][: len(packed.sampled_rows)]
        if room.chunks:
            return self._logits(recordings.outputs.normed[rows])
        logits = recordings.outputs.logits
        return logits[: packed.num_decodes] if packed.samples_each else logits[rows]

    def _make_room(self, num_requests: int, block_size: int) -> int:
        """See that there are tables for so many requests; returns the most blocks of one."""
        max_blocks = -(-self._max_positions // block_size)
        if num_requests > self._tables.num_rows or max_blocks != self._tables.max_blocks:
            assert self._recordings is None, "recordings read the old place; `record` makes room for all rows"
            self._tables = BlockTables(max(num_requests, _FEWEST_ROWS), max_blocks)
            size = self._tables.num_rows * max_blocks
            self._blocks = torch.zeros(size, dtype=torch.int32, device=self.device)
        return max_blocks

    def _upload(
        self, buffer: InputBuffer, packed: PackedStep, field_sizes: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Copy a step to the device and bring the tables there up to date; returns the step's views."""
        buffer.upload(packed.fields, field_sizes)
        views = buffer.views(field_sizes)
        store_blocks(self._blocks, views["changes"], len(packed.fields["changes"]) // 2)
        return views

    def _decodes_run(self, step: StepTensors, cache: KVCache, logits: Tensor) -> Run:
        def run() -> None:
            hidden, delta, delta_weight = self._hidden(step, cache)
            logits.copy_(self._logits(self._normed(hidden, delta, delta_weight, torch.empty_like(hidden))))

        return run

    def _mixed_run(self, step: StepTensors, cache: KVCache, normed: Tensor) -> Run:
        """Return all of a step but its logits: how many rows are sampled has nothing to do with its size.

        They are left to three launches or so, which the device finds waiting when the recording is over.
        """

        def run() -> None:
            self._normed(*self._hidden(step, cache), normed)

        return run

    def _step(self, views: Mapping[str, Tensor], num_decodes: int, partials: Partials | None) -> StepTensors:
        views = {**views, "blocks": self._blocks}
        decodes = DecodeWork.of(views, num_decodes) if num_decodes else None
        if decodes is not None and partials is None:
            partials = make_partials(decodes.items.shape[0], self._heads, self.device)
        chunks = ChunkWork.of(views) if "tile_requests" in views else None
        return StepTensors(views["token_ids"], views["positions"], views["slots"], decodes, partials, chunks)

    def _hidden(self, step: StepTensors, cache: KVCache) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the residual stream, what the last layer adds to it, and the norm of that."""
        hidden = F.embedding(feed(step.token_ids, self._sampled), self._frame.table)
        if self.architecture.scales.embedding != 1:
            hidden = hidden * self.architecture.scales.embedding
        scratch = make_scratch(self.architecture, hidden.shape[0], hidden)
        if step.chunks is not None:
            # Nobody attends for rows that fill up a recording, and what their memory holds may be NaN.
            scratch.attended.zero_()
        delta: Tensor | None = None
        delta_weight: Tensor | None = None
        for index, layer in enumerate(self._layers):
            delta, delta_weight = layer(hidden, delta, delta_weight, step, cache, index, scratch)
        return hidden, delta, delta_weight

    def _normed(
        self, hidden: Tensor, delta: Tensor | None, delta_weight: Tensor | None, out: Tensor
    ) -> Tensor:
        """Return what the logits of some rows come from, [B, E], in `out`."""
        eps, residual = self.architecture.rms_norm_eps, self.architecture.scales.residual
        if not hidden.shape[0]:
            return out
        return add_and_norm(hidden, delta, delta_weight, self._frame.norm, eps, residual, out)

    def _logits(self, normed: Tensor) -> Tensor:
        """Logits of some rows: [B, E] -> [B, V] float32."""
        scales = self.architecture.scales
        if not normed.shape[0]:
            return torch.empty(0, self.architecture.vocab_size, device=self.device)
        logits = self._frame.lm_head(normed).float()
        if scales.logits != 1:
            logits = logits / scales.logits
        if scales.logits_cap is not None:
            logits = (logits / scales.logits_cap).tanh_() * scales.logits_cap
        return logits


def _prepared(layer: Layer, change: Callable[[Product], Product]) -> Layer:
    """Return a layer with its products changed, but for those of experts that can be multiplied together."""
    mapped = layer.mapped(change)
    if not isinstance(layer.mlp, Experts) or not mapped.has_single_experts:
        return mapped
    return replace(mapped, mlp=stacked_mixture(layer.mlp) or mapped.mlp)


def kernel_linears(layers: Iterable[Layer]) -> list[KernelLinear]:
    """Return the products of layers that kernels over quantized weights compute."""
    products: list[Product] = []
    for layer in layers:
        mlp = layer.mlp
        mlps: Sequence[Mlp] = (mlp,) if isinstance(mlp, Mlp) else ()
        if isinstance(mlp, Experts) and layer.has_single_experts:
            mlps = mlp.experts
        products += [layer.qkv, layer.output, *(one for mlp in mlps for one in (mlp.gate_up, mlp.down))]
    return [product for product in products if isinstance(product, KernelLinear)]
