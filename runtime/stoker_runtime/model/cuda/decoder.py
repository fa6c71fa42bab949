"""The decoder over Triton's kernels; takes `decoder.Decoder`'s place where they work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.architecture import Architecture, RopeSettings
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.cuda import shapes
from stoker_runtime.model.cuda.block_tables import BlockTables
from stoker_runtime.model.cuda.chunk_attention import ChunkWork, tokens_per_tile
from stoker_runtime.model.cuda.decode_attention import DecodeWork, Partials, make_partials
from stoker_runtime.model.cuda.feed import feed
from stoker_runtime.model.cuda.fp8_linear import fp8_products_work, with_kernels
from stoker_runtime.model.cuda.graphs import Recorder, Run, bucket_for
from stoker_runtime.model.cuda.input_buffer import InputBuffer
from stoker_runtime.model.cuda.layers import CudaLayer, StepTensors, make_scratch
from stoker_runtime.model.cuda.norms import add_and_norm
from stoker_runtime.model.cuda.picker import CudaPicker
from stoker_runtime.model.cuda.step_layout import PackedStep, offsets, pack
from stoker_runtime.model.cuda.store_blocks import store_blocks
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.picker import Picker
from stoker_runtime.model.rope import Rope

_PROGRAMS_PER_PROCESSOR = 4  # of the decodes' attention: what registers and shared memory admit at once
_INTERPRETED_PROGRAMS = 4
_SMALLEST_BUFFER = 1 << 16  # integers
_SMALLEST_SAMPLED = 1024  # tokens
_FEWEST_ROWS = 16  # requests


@dataclass(frozen=True, slots=True)
class _Recordings:
    """Steps of decodes alone, for one cache.

    Args:
        cache: the only one that they read and write.
        sizes: rows of each recording, ascending.
        replays: by rows.
        buffer: where they read the step.
        fields: sizes of the buffer's fields, by rows.
        logits: where they leave their results.
    Shapes:
        logits [rows of the largest, V] float32
    """

    cache: KVCache
    sizes: list[int]
    replays: dict[int, Run]
    buffer: InputBuffer
    fields: dict[int, dict[str, int]]
    logits: Tensor


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
        self._loaded = [layer.mapped(change) for layer in assembly.layers()]
        self._frame = assembly.frame()
        self.num_bytes = assembly.num_bytes
        self.picker: Picker = CudaPicker()
        self._heads = shapes.heads_of(architecture)
        self._tokens_per_tile = tokens_per_tile(self._heads, self.dtype)
        self._max_positions = 0
        self._layers: list[CudaLayer] = []
        self._buffer = InputBuffer(_SMALLEST_BUFFER, self.device)
        self._recordings: _Recordings | None = None
        self._sampled = torch.zeros(_SMALLEST_SAMPLED, dtype=torch.int32, device=self.device)
        self._tables = BlockTables(0, 0)
        self._blocks = torch.zeros(0, dtype=torch.int32, device=self.device)

    def set_max_positions(self, count: int) -> None:
        """Make the tables of rotary angles; needed once, before the first step."""
        self._max_positions = count
        ropes: Mapping[RopeSettings, Rope] = {
            settings: Rope(settings, count, self.dtype, self.device, self._frame.rope_divisors)
            for settings in self.architecture.ropes
        }
        num_programs = _INTERPRETED_PROGRAMS
        if self.device.type == "cuda":
            processors = torch.cuda.get_device_properties(self.device).multi_processor_count
            num_programs = _PROGRAMS_PER_PROCESSOR * processors
        self._layers = [CudaLayer(layer, self.architecture, ropes, num_programs) for layer in self._loaded]

    @torch.inference_mode()
    def record(self, cache: KVCache, sizes: Sequence[int]) -> None:
        """Record steps of decodes alone, in place of what was recorded before.

        Args:
            cache: where it is used, the recordings replay.
            sizes: numbers of decodes, ascending; a step takes the smallest that holds it.
        """
        self._recordings = None
        if sizes and sizes[-1] > len(self._sampled):
            self._sampled = torch.zeros(sizes[-1], dtype=torch.int32, device=self.device)
        if not sizes or any(layer.has_single_experts for layer in self._loaded):
            return
        largest = sizes[-1]
        max_blocks = self._make_room(largest, cache.block_size)
        fields = {size: self._decode_fields(size, max_blocks) for size in sizes}
        buffer = InputBuffer(max(offsets(of_size)[""] for of_size in fields.values()), self.device)
        partials = make_partials(largest * shapes.max_splits(self._max_positions), self._heads, self.device)
        logits = torch.empty(largest, self.architecture.vocab_size, device=self.device)
        recorder = Recorder(self.device)
        replays: dict[int, Run] = {}
        for size in reversed(sizes):  # the largest first: the others fit into the scratch memory it took
            step = self._step(buffer.views(fields[size]), size, size, partials)
            replays[size] = recorder.record(self._run(step, cache, logits[:size]))
        self._recordings = _Recordings(cache, list(sizes), replays, buffer, fields, logits)

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
        if recordings is not None and recordings.cache is cache and plan.num_tokens == len(plan.requests):
            size = bucket_for(plan.num_tokens, recordings.sizes)
            if size is not None:
                return self._replay(plan, recordings, size)
        self._make_room(len(plan.requests), cache.block_size)
        packed = pack(plan, cache.block_size, self._tokens_per_tile, tables=self._tables)
        field_sizes = {name: len(values) for name, values in packed.fields.items()}
        needed = offsets(field_sizes)[""]
        if needed > self._buffer.capacity:
            self._buffer = InputBuffer(2 * needed, self.device)
        views = self._upload(self._buffer, packed, field_sizes)
        step = self._step(views, packed.num_decodes, packed.num_tokens, None)
        return self._logits(*self._hidden(step, cache), views.get("sampled_rows"))

    def _replay(self, plan: StepPlan, recordings: _Recordings, size: int) -> Tensor:
        block_size, tile = recordings.cache.block_size, self._tokens_per_tile
        packed = pack(plan, block_size, tile, size, self._tables)
        self._upload(recordings.buffer, packed, recordings.fields[size])
        recordings.replays[size]()
        if len(packed.sampled_rows) == packed.num_decodes:
            return recordings.logits[: packed.num_decodes]
        return recordings.logits[packed.sampled_rows]

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

    def _run(self, step: StepTensors, cache: KVCache, logits: Tensor) -> Run:
        def run() -> None:
            logits.copy_(self._logits(*self._hidden(step, cache), None))

        return run

    def _decode_fields(self, size: int, max_blocks: int) -> dict[str, int]:
        """Sizes of the fields that pack makes for a step of decodes, at their largest."""
        return {
            "token_ids": size,
            "positions": size,
            "slots": size,
            "contexts": size,
            "first_items": size + 1,
            "decode_first_blocks": size,
            "items": size * shapes.max_splits(self._max_positions),
            "changes": 2 * size * max_blocks,
        }

    def _step(
        self, views: Mapping[str, Tensor], num_decodes: int, num_tokens: int, partials: Partials | None
    ) -> StepTensors:
        views = {**views, "blocks": self._blocks}
        decodes = DecodeWork.of(views, num_decodes) if num_decodes else None
        if decodes is not None and partials is None:
            partials = make_partials(decodes.items.shape[0], self._heads, self.device)
        chunks = ChunkWork.of(views) if num_tokens > num_decodes else None
        return StepTensors(views["token_ids"], views["positions"], views["slots"], decodes, partials, chunks)

    def _hidden(self, step: StepTensors, cache: KVCache) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the residual stream, what the last layer adds to it, and the norm of that."""
        hidden = F.embedding(feed(step.token_ids, self._sampled), self._frame.table)
        if self.architecture.scales.embedding != 1:
            hidden = hidden * self.architecture.scales.embedding
        scratch = make_scratch(self.architecture, hidden.shape[0], hidden)
        delta: Tensor | None = None
        delta_weight: Tensor | None = None
        for index, layer in enumerate(self._layers):
            delta, delta_weight = layer(hidden, delta, delta_weight, step, cache, index, scratch)
        return hidden, delta, delta_weight

    def _logits(
        self, hidden: Tensor, delta: Tensor | None, delta_weight: Tensor | None, sampled_rows: Tensor | None
    ) -> Tensor:
        """Logits of some rows, or of all: [B, V] float32."""
        if sampled_rows is not None:
            hidden = hidden[sampled_rows]
            delta = None if delta is None else delta[sampled_rows]
        scales = self.architecture.scales
        if not hidden.shape[0]:
            return torch.empty(0, self.architecture.vocab_size, device=self.device)
        normed = add_and_norm(
            hidden,
            delta,
            delta_weight,
            self._frame.norm,
            self.architecture.rms_norm_eps,
            scales.residual,
            torch.empty_like(hidden),
        )
        logits = self._frame.lm_head(normed).float()
        if scales.logits != 1:
            logits = logits / scales.logits
        if scales.logits_cap is not None:
            logits = (logits / scales.logits_cap).tanh_() * scales.logits_cap
        return logits
