"""Paged attention's kernels equal PyTorch's operators in double precision, in every shape that may occur."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import PagedCache, attend_span, make_paged_cache
from torch import Tensor

from stoker_runtime.model.cuda import shapes
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
from stoker_runtime.model.cuda.sdpa_attention import attend_spans, is_same
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS, Heads, Scoring
from stoker_runtime.model.cuda.spans import Span
from stoker_runtime.model.fp8 import FP8

THREE_PROGRAMS = DecodeLaunch(3)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

heads_of_any_shape = st.builds(
    lambda group, num_kv_heads, head_dim: Heads(group * num_kv_heads, num_kv_heads, head_dim),
    st.integers(1, 8),
    st.integers(1, 2),
    st.sampled_from([64, 80, 96, 128, 256]),
)
scorings = st.builds(
    Scoring,
    st.sampled_from([0.05, 0.125, 0.3]),
    st.sampled_from([None, 0.5, 2.0, 30.0]),
    st.sampled_from([None, None, 1, 5, 16, 63, 64, 65, 255, 256, 257, 300]),
)
# around the borders of blocks, tiles and splits
lengths = st.one_of(
    st.integers(1, 70),
    st.sampled_from([127, 128, 129, 255, 256, 257, 258, 511, 512, 513, 600]),
)
# The interpreter multiplies bfloat16 wrongly.
dtypes = st.sampled_from(
    [torch.float32, torch.float16, *([] if "TRITON_INTERPRET" in os.environ else [torch.bfloat16])]
)
FIXED_DEVICE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)


def int32(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def decode_work(cache: PagedCache, contexts: Sequence[int], device: torch.device) -> DecodeWork:
    firsts, items = [0], list[int]()
    first_blocks, blocks = list[int](), list[int]()
    for row, context in enumerate(contexts):
        items += [row * MAX_SPLITS + split for split in range(shapes.num_splits(context))]
        firsts.append(len(items))
        first_blocks.append(len(blocks))
        blocks += cache.tables[row]
    return DecodeWork(
        contexts=int32(contexts, device),
        first_items=int32(firsts, device),
        items=int32(items, device),
        first_blocks=int32(first_blocks, device),
        blocks=int32(blocks, device),
        num_rows=len(contexts),
    )


def decode(
    query: Tensor,
    cache: PagedCache,
    contexts: Sequence[int],
    heads: Heads,
    scoring: Scoring,
    launch: DecodeLaunch = THREE_PROGRAMS,
) -> Tensor:
    work = decode_work(cache, contexts, query.device)
    partials = make_partials(work.items.shape[0], heads, query.device)
    partials.out.fill_(float("nan"))
    partials.stats.fill_(float("nan"))
    out = torch.full_like(query, float("nan"))
    attend_decodes(query, cache.pair, cache.block_size, work, partials, heads, scoring, out, launch)
    return out


def random_query(num_tokens: int, heads: Heads, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(num_tokens, heads.num_heads * heads.head_dim, generator=generator).to(device, dtype)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def expected_rows(
    query: Tensor, cache: PagedCache, spans: Sequence[tuple[int, int]], heads: Heads, scoring: Scoring
) -> Tensor:
    """Rows of requests with (tokens computed before, tokens), one after the other: [T, H * D]."""
    rows = query.view(-1, heads.num_heads, heads.head_dim)
    found, first = [], 0
    for request, (computed, count) in enumerate(spans):
        slots = cache.slots(request, computed + count)
        own, first = rows[first : first + count], first + count
        found.append(attend_span(own, cache.keys[slots], cache.values[slots], scoring))
    return torch.cat(found).flatten(1)


@FIXED_DEVICE
@given(
    heads=heads_of_any_shape,
    scoring=scorings,
    contexts=st.lists(lengths, min_size=1, max_size=4),
    block_size=st.sampled_from([1, 3, 16, 32]),
    dtype=dtypes,
    kv_dtype=st.sampled_from([None, FP8]),
)
def test_decodes_equal_the_reference(
    device: torch.device,
    heads: Heads,
    scoring: Scoring,
    contexts: list[int],
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
) -> None:
    cache = make_paged_cache(contexts, block_size, heads, dtype, device, sum(contexts), kv_dtype)
    query = random_query(len(contexts), heads, dtype, device)
    found = decode(query, cache, contexts, heads, scoring)
    spans = [(context - 1, 1) for context in contexts]
    assert_close(found, expected_rows(query, cache, spans, heads, scoring), dtype)


@FIXED_DEVICE
@given(
    heads=heads_of_any_shape,
    scoring=scorings,
    spans=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(1, 70), st.sampled_from([127, 128, 257])),
            st.one_of(st.integers(1, 40), st.sampled_from([64, 65])),
        ),
        min_size=1,
        max_size=2,
    ),
    block_size=st.sampled_from([1, 3, 16, 32]),
    dtype=dtypes,
    kv_dtype=st.sampled_from([None, FP8]),
)
def test_chunks_equal_the_reference(
    device: torch.device,
    heads: Heads,
    scoring: Scoring,
    spans: list[tuple[int, int]],
    block_size: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
) -> None:
    contexts = [computed + count for computed, count in spans]
    cache = make_paged_cache(contexts, block_size, heads, dtype, device, sum(contexts), kv_dtype)
    query = random_query(sum(count for _, count in spans), heads, dtype, device)
    found = chunks(query, cache, spans, heads, scoring)
    assert_close(found, expected_rows(query, cache, spans, heads, scoring), dtype)


def chunks(
    query: Tensor,
    cache: PagedCache,
    spans: Sequence[tuple[int, int]],
    heads: Heads,
    scoring: Scoring,
    launch: ChunkLaunch | None = None,
) -> Tensor:
    size = tokens_per_tile(heads, query.dtype)
    tiles = [(i, first) for i, (_, count) in enumerate(spans) for first in range(0, count, size)]
    counts = [count for _, count in spans]
    tables = cache.tables
    device = query.device
    work = ChunkWork(
        first_rows=int32([sum(counts[:i]) for i in range(len(counts))], device),
        num_tokens=int32(counts, device),
        num_computed=int32([computed for computed, _ in spans], device),
        first_blocks=int32([sum(map(len, tables[:i])) for i in range(len(tables))], device),
        blocks=int32([block for table in tables for block in table], device),
        tile_requests=int32([request for request, _ in tiles], device),
        tile_tokens=int32([first for _, first in tiles], device),
    )
    out = torch.full_like(query, float("nan"))
    launch = launch or ChunkLaunch.default(heads, query.dtype)
    attend_chunks(query, cache.pair, cache.block_size, work, heads, scoring, out, launch)
    return out


@FIXED_DEVICE
@given(
    heads=heads_of_any_shape,
    spans=st.lists(
        st.tuples(st.one_of(st.just(0), st.integers(1, 300)), st.integers(1, 70)), min_size=1, max_size=3
    ),
    window=st.sampled_from([None, 370]),
    block_size=st.sampled_from([1, 3, 16, 32]),
    first_row=st.integers(0, 2),
    dtype=dtypes,
)
def test_chunks_by_pytorchs_operator_equal_the_reference(
    device: torch.device,
    heads: Heads,
    spans: list[tuple[int, int]],
    window: int | None,
    block_size: int,
    first_row: int,
    dtype: torch.dtype,
) -> None:
    """Behind rows of decodes, whose results stay."""
    scoring = Scoring(0.125, None, window)
    assert is_same(scoring, 370)
    contexts = [computed + count for computed, count in spans]
    cache = make_paged_cache(contexts, block_size, heads, dtype, device, sum(contexts))
    # Blocks behind a context hold NaN, which must not be seen; so do rows of others.
    query = random_query(first_row + sum(count for _, count in spans), heads, dtype, device)
    out = torch.full_like(query, 7.0)
    chunks, row, block = list[Span](), first_row, 0
    for (computed, count), table in zip(spans, cache.tables, strict=True):
        chunks.append(Span(row, count, computed, block))
        row, block = row + count, block + len(table)
    blocks = int32([block for table in cache.tables for block in table], device)
    with torch.inference_mode():
        attend_spans(query, cache.pair, block_size, blocks, chunks, heads, scoring, out)
    assert torch.equal(out[:first_row], torch.full_like(out[:first_row], 7.0))
    assert_close(out[first_row:], expected_rows(query[first_row:], cache, spans, heads, scoring), dtype)


def test_pytorchs_operator_knows_neither_caps_nor_windows() -> None:
    assert is_same(Scoring(0.1), 10**6)
    assert is_same(Scoring(0.1, None, 8), 8)
    assert not is_same(Scoring(0.1, None, 8), 9)
    assert not is_same(Scoring(0.1, 30.0), 9)


@pytest.mark.parametrize("launch", [ChunkLaunch(4, 2), ChunkLaunch(4, 3), ChunkLaunch(8, 3)])
def test_chunks_equal_the_reference_however_they_are_launched(
    device: torch.device, launch: ChunkLaunch
) -> None:
    heads, scoring, spans = Heads(8, 2, 128), Scoring(0.1, None, 90), [(70, 80), (0, 33)]
    cache = make_paged_cache([150, 33], 16, heads, torch.float16, device, seed=4)
    query = random_query(113, heads, torch.float16, device)
    found = chunks(query, cache, spans, heads, scoring, launch)
    assert_close(found, expected_rows(query, cache, spans, heads, scoring), torch.float16)


@pytest.mark.parametrize("window", [None, 100])
def test_long_contexts_get_longer_splits(device: torch.device, window: int | None) -> None:
    context = SPLIT_TOKENS * MAX_SPLITS + 5
    assert shapes.split_tokens(context) == 2 * SPLIT_TOKENS
    heads, scoring = Heads(2, 1, 64), Scoring(0.125, None, window)
    cache = make_paged_cache([context, 9], 64, heads, torch.float32, device, seed=0)
    query = random_query(2, heads, torch.float32, device)
    found = decode(query, cache, [context, 9], heads, scoring)
    spans = [(context - 1, 1), (8, 1)]
    assert_close(found, expected_rows(query, cache, spans, heads, scoring), torch.float32)


def test_a_decode_is_the_same_in_every_bit_whatever_runs_beside_it(device: torch.device) -> None:
    heads, scoring = Heads(6, 2, 64), Scoring(0.125)
    contexts = [300, 700, 17, 1]
    cache = make_paged_cache(contexts, 16, heads, torch.float16, device, seed=1)
    query = random_query(4, heads, torch.float16, device)
    together = decode(query, cache, contexts, heads, scoring, DecodeLaunch(5))
    for row, context in enumerate(contexts):
        alone = PagedCache(cache.keys, cache.values, 16, [cache.tables[row]])
        for launch in (DecodeLaunch(1), DecodeLaunch(7), DecodeLaunch(2, 2), DecodeLaunch(2, 4)):
            found = decode(query[row : row + 1], alone, [context], heads, scoring, launch)
            assert torch.equal(found[0], together[row])


@FIXED_DEVICE
@given(
    heads=heads_of_any_shape,
    scoring=scorings,
    contexts=st.lists(lengths, min_size=1, max_size=3),
    launch=st.builds(DecodeLaunch, st.integers(1, 9), st.integers(2, 4)),
    kv_dtype=st.sampled_from([None, FP8]),
)
def test_decodes_are_the_same_in_every_bit_however_they_are_launched(
    device: torch.device,
    heads: Heads,
    scoring: Scoring,
    contexts: list[int],
    launch: DecodeLaunch,
    kv_dtype: torch.dtype | None,
) -> None:
    cache = make_paged_cache(contexts, 16, heads, torch.float16, device, sum(contexts), kv_dtype)
    query = random_query(len(contexts), heads, torch.float16, device)
    expected = decode(query, cache, contexts, heads, scoring)
    assert torch.equal(decode(query, cache, contexts, heads, scoring, launch), expected)


def test_padding_rows_attend_to_nothing(device: torch.device) -> None:
    heads, scoring = Heads(4, 2, 64), Scoring(0.125)
    cache = make_paged_cache([20, 0, 0], 16, heads, torch.float32, device, seed=2)
    query = random_query(3, heads, torch.float32, device)
    found = decode(query, cache, [20, 0, 0], heads, scoring)
    assert_close(found[:1], expected_rows(query[:1], cache, [(19, 1)], heads, scoring), torch.float32)
    assert torch.equal(found[1:], torch.zeros_like(found[1:]))
