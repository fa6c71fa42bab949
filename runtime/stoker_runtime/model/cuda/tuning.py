"""What is measured before a model is served, and at which shapes; see choices for how times decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.cuda import spans
from stoker_runtime.model.cuda.check import TOLERANCE
from stoker_runtime.model.cuda.choices import Choice, many_rows
from stoker_runtime.model.cuda.chooser import Chooser, Way
from stoker_runtime.model.cuda.chunk_attention import (
    ChunkLaunch,
    ChunkWork,
    attend_chunks,
    tokens_per_tile,
)
from stoker_runtime.model.cuda.decode_attention import (
    DecodeLaunch,
    DecodeWork,
    attend_decodes,
    make_partials,
)
from stoker_runtime.model.cuda.launches import (
    Launches,
    chunk_candidates,
    decode_candidates,
    num_processors,
)
from stoker_runtime.model.cuda.quantized_linear import MANY_ROWS, KernelLinear, reads_codes
from stoker_runtime.model.cuda.sample_step import SampleStep, sample_step
from stoker_runtime.model.cuda.sdpa_attention import attend_spans, is_fused, is_same
from stoker_runtime.model.cuda.shapes import Heads, Scoring, heads_of, scoring_of
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.weight import IntWeight, QuantizedWeight

_CODES, _DEQUANTIZED = "codes", "dequantized"
_TRITON, _SDPA = "triton", "sdpa"


@dataclass(frozen=True, slots=True)
class Workload:
    """What a device is measured with: about what a busy server computes.

    Args:
        chunk_tokens: of a long prompt's chunk.
        chunk_contexts: tokens before it; it is measured with each, and the sum counts.
        decodes: requests and the context of each, of several steps; likewise.
        rows: of products with quantized weights.
        most_bytes: of the caches that are made for it.
    """

    chunk_tokens: int = 2048
    chunk_contexts: tuple[int, ...] = (0, 6144)
    decodes: tuple[tuple[int, int], ...] = ((4, 4096), (64, 1024))
    rows: tuple[int, ...] = (32, 64, 128, 256, 512)
    most_bytes: int = 512 << 20

    def fitted(self, longest: int, token_bytes: int) -> Workload:
        """Return one whose contexts a model can have and whose caches are small enough.

        Args:
            longest: context of the model.
            token_bytes: of one layer's cache.
        """
        most_tokens = max(1, self.most_bytes // token_bytes)
        longest = min(longest, most_tokens)
        tokens = min(self.chunk_tokens, longest)
        contexts = dict.fromkeys(min(context, longest - tokens) for context in self.chunk_contexts)
        decodes = [(count, min(context, longest)) for count, context in self.decodes]
        fitting = [(max(1, min(count, most_tokens // context)), context) for count, context in decodes]
        return replace(
            self, chunk_tokens=tokens, chunk_contexts=tuple(contexts), decodes=tuple(dict.fromkeys(fitting))
        )


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention's times depend on.

    Args:
        heads: of the model.
        scoring: of the layers that see farthest.
        longest: context.
        block_size: tokens per KV block.
        dtype: of queries.
        kv_dtype: of the cache.
        device: that computes.
    """

    heads: Heads
    scoring: Scoring
    longest: int
    block_size: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        longest: int,
        block_size: int,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
    ) -> Attention:
        """Take it from a model's architecture."""
        kind = max(architecture.layers, key=lambda kind: kind.window or longest)
        scoring = scoring_of(architecture, kind)
        return cls(heads_of(architecture), scoring, longest, block_size, dtype, kv_dtype, device)

    @property
    def token_bytes(self) -> int:
        """Of one layer's cache."""
        return 2 * self.heads.num_kv_heads * self.heads.head_dim * self.kv_dtype.itemsize

    @property
    def signature(self) -> str:
        """Of choices between launches of this attention."""
        heads, scoring = self.heads, self.scoring
        types = f"{_name(self.dtype)} over {_name(self.kv_dtype)}"
        return (
            f"{heads.num_heads} heads and {heads.num_kv_heads} KV heads of {heads.head_dim}, {types}, "
            f"blocks of {self.block_size}, window {scoring.window}, cap {scoring.cap}"
        )


def choose_launches(chooser: Chooser, attention: Attention, workload: Workload) -> Launches:
    """Choose how attention is launched."""
    workload = workload.fitted(attention.longest, attention.token_bytes)
    chunks = _choose_chunks(chooser, attention, workload)
    return Launches(
        decodes=_choose_decodes(chooser, attention, workload),
        chunks=chunks,
        has_sdpa=_choose_sdpa(chooser, attention, workload, chunks),
    )


def choose_many_rows(
    chooser: Chooser, linears: Iterable[KernelLinear], dtype: torch.dtype, rows: Sequence[int]
) -> None:
    """Choose from how many rows on quantized weights are dequantized, for each kind by its largest weight."""
    linears = list(linears)
    largest: dict[str, QuantizedWeight] = {}
    for weight in (weight for linear in linears for weight in linear.weights if reads_codes(weight)):
        known = largest.setdefault(_kind(weight), weight)
        if weight.num_bytes > known.num_bytes:
            largest[_kind(weight)] = weight
    found = {
        kind: many_rows({count: _is_dequantized(chooser, weight, dtype, count) for count in rows})
        for kind, weight in largest.items()
    }
    for linear in linears:
        linear.set_many_rows(lambda weight: found.get(_kind(weight), MANY_ROWS))


def _choose_decodes(chooser: Chooser, attention: Attention, workload: Workload) -> DecodeLaunch:
    candidates = decode_candidates(num_processors(attention.device))
    steps = " and ".join(f"{count} x {context}" for count, context in workload.decodes)
    choice = Choice("attention of decodes", f"{attention.signature}; {steps}", tuple(candidates))

    def prepare() -> Mapping[str, Way]:
        run = _decodes_run(attention, workload)
        return {candidate: partial(run, launch) for candidate, launch in candidates.items()}

    # Rule 1 of decision 0004: what a decode attends to depends on nothing else, to the last bit.
    return candidates[chooser.choose(choice, prepare, tolerance=0.0)]


def _choose_chunks(chooser: Chooser, attention: Attention, workload: Workload) -> ChunkLaunch:
    candidates = chunk_candidates(attention.heads, attention.dtype)
    choice = Choice("attention of chunks", _chunks_signature(attention, workload), tuple(candidates))

    def prepare() -> Mapping[str, Way]:
        run = _ChunksRun(attention, workload)
        return {name: partial(run.triton, launch) for name, launch in candidates.items()}

    return candidates[chooser.choose(choice, prepare, TOLERANCE[attention.dtype])]


def _choose_sdpa(chooser: Chooser, attention: Attention, workload: Workload, launch: ChunkLaunch) -> bool:
    # Else no layer scores as the operator does, or no chunk is long enough for it.
    can_be_same = attention.kv_dtype == attention.dtype and is_same(attention.scoring, spans.FEWEST_TOKENS)
    if not can_be_same or attention.longest < spans.FEWEST_TOKENS:
        return False
    signature = f"{_chunks_signature(attention, workload)}; {launch.num_warps} x {launch.num_stages}"
    choice = Choice("attention of long prompts", signature, (_TRITON, _SDPA))

    def prepare() -> Mapping[str, Way]:
        # Contexts that a window cuts keep Triton's kernel, so those that it does not cut are compared.
        run = _ChunksRun(replace(attention, scoring=replace(attention.scoring, window=None)), workload)
        return {_TRITON: partial(run.triton, launch), _SDPA: run.sdpa}

    return chooser.choose(choice, prepare, TOLERANCE[attention.dtype]) == _SDPA


def _chunks_signature(attention: Attention, workload: Workload) -> str:
    contexts = " and ".join(map(str, workload.chunk_contexts))
    return f"{attention.signature}; {workload.chunk_tokens} tokens behind {contexts}"


def _decodes_run(attention: Attention, workload: Workload) -> Callable[[DecodeLaunch], Tensor]:
    """Return what attends all decodes of a workload and returns what they attend to, [requests, H * D]."""
    heads, device = attention.heads, attention.device
    steps = [
        _sample(attention, [(context - 1, 1)] * count, tokens_per_tile(heads, attention.dtype))
        for count, context in workload.decodes
    ]
    cache = _random_cache(attention, max(step.num_slots for step in steps))
    query, out = _random_rows(attention, sum(step.packed.num_tokens for step in steps))
    works = [DecodeWork.of(step.views, step.packed.num_decodes) for step in steps]
    most_items = max(work.items.shape[0] for work in works)
    partials = make_partials(most_items, heads, device)

    def run(launch: DecodeLaunch) -> Tensor:
        first = 0
        for work in works:
            rows = slice(first, first + work.num_rows)
            first += work.num_rows
            attend_decodes(
                query[rows], cache, attention.block_size, work, partials, heads, attention.scoring, out[rows],
                launch,
            )  # fmt: skip
        return out

    return run


class _ChunksRun:
    """Attends all chunks of a workload, and returns what they attend to, [tokens of all, H * D]."""

    def __init__(self, attention: Attention, workload: Workload) -> None:
        self._attention = attention
        size = tokens_per_tile(attention.heads, attention.dtype)
        tokens, contexts = workload.chunk_tokens, workload.chunk_contexts
        self._steps = [_sample(attention, [(context, tokens)], size) for context in contexts]
        self._cache = _random_cache(attention, max(step.num_slots for step in self._steps))
        self._query, self._out = _random_rows(attention, tokens * len(contexts))

    def triton(self, launch: ChunkLaunch) -> Tensor:
        """Attend by the kernel."""
        attention, heads, scoring = self._attention, self._attention.heads, self._attention.scoring
        for step, query, out in self._parts():
            work = ChunkWork.of(step.views)
            attend_chunks(query, self._cache, attention.block_size, work, heads, scoring, out, launch)
        return self._out

    def sdpa(self) -> Tensor:
        """Attend by PyTorch's operator."""
        attention, heads, scoring = self._attention, self._attention.heads, self._attention.scoring
        if not is_fused(heads, attention.dtype, attention.device):
            raise RuntimeError("PyTorch has no fused operator for these heads on this device")
        for step, query, out in self._parts():
            chunks, blocks = spans.spans_of(step.packed.fields), step.views["blocks"]
            attend_spans(query, self._cache, attention.block_size, blocks, chunks, heads, scoring, out)
        return self._out

    def _parts(self) -> Iterable[tuple[SampleStep, Tensor, Tensor]]:
        size = self._out.shape[0] // len(self._steps)
        return zip(self._steps, self._query.split(size), self._out.split(size), strict=True)  # type: ignore[no-untyped-call]


def _sample(attention: Attention, requests: Sequence[tuple[int, int]], size: int) -> SampleStep:
    return sample_step(requests, attention.block_size, size, attention.device)


def _random_cache(attention: Attention, num_slots: int) -> tuple[Tensor, Tensor]:
    shape = (num_slots, attention.heads.num_kv_heads, attention.heads.head_dim)
    keys, values = (_random(attention, seed, *shape).to(attention.kv_dtype) for seed in (1, 2))
    return keys, values


def _random_rows(attention: Attention, count: int) -> tuple[Tensor, Tensor]:
    """Queries, and room for what they attend to."""
    query = _random(attention, 0, count, attention.heads.num_heads * attention.heads.head_dim)
    return query, torch.empty_like(query)


def _random(attention: Attention, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(attention.device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=attention.dtype, device=attention.device)


def _is_dequantized(chooser: Chooser, weight: QuantizedWeight, dtype: torch.dtype, num_rows: int) -> bool:
    """Choose how a product of so many rows is computed."""
    num_outputs, num_inputs = weight.shape
    candidates = (_CODES, _DEQUANTIZED) if num_rows < MANY_ROWS else (_DEQUANTIZED, _CODES)
    signature = f"{num_outputs} x {num_inputs}, rows of {_name(dtype)}"
    choice = Choice(f"product of {num_rows} rows with {_kind(weight)}", signature, candidates)
    device = weight.scales.device

    def prepare() -> Mapping[str, Way]:
        generator = torch.Generator(device).manual_seed(num_rows)
        rows = torch.randn(num_rows, num_inputs, generator=generator, dtype=dtype, device=device)
        codes, plain = (KernelLinear(QuantizedLinear((weight,))) for _ in range(2))
        codes.set_many_rows(lambda _: num_rows + 1)
        plain.set_many_rows(lambda _: num_rows)
        return {_CODES: partial(codes, rows), _DEQUANTIZED: partial(plain, rows)}

    return chooser.choose(choice, prepare, TOLERANCE[dtype]) == _DEQUANTIZED


def _kind(weight: QuantizedWeight) -> str:
    bits = f"{weight.bits} bits" if isinstance(weight, IntWeight) else "fp8"
    is_grouped = weight.group_size < weight.shape[1]
    return f"{bits} in groups of {weight.group_size}" if is_grouped else bits


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
