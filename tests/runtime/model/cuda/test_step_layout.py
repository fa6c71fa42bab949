"""A plan laid out for the kernels says the same as the plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import make_sampling

from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.model.cuda import shapes
from stoker_runtime.model.cuda.graphs import bucket_for, buckets
from stoker_runtime.model.cuda.input_buffer import InputBuffer
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS
from stoker_runtime.model.cuda.step_layout import offsets, pack, split_items

lengths = st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 257, 8191, 8192, 9000]))


@st.composite
def plans(draw: st.DrawFn, counts: st.SearchStrategy[int]) -> tuple[StepPlan, int]:
    """A plan and its block size; tokens are numbered through, no block is in two tables."""
    block_size = draw(st.integers(1, 20))
    requests, first_block, first_token = [], 0, 1
    for index, (computed, count) in enumerate(
        draw(st.lists(st.tuples(lengths, counts), min_size=1, max_size=6))
    ):
        num_blocks = -(-(computed + count) // block_size)
        requests.append(
            ScheduledRequest(
                request_id=str(index),
                token_ids=list(range(first_token, first_token + count)),
                num_computed_tokens=computed,
                block_ids=list(range(first_block, first_block + num_blocks))[::-1],
                samples=draw(st.booleans()),
                sampling=make_sampling(),
                seed=0,
                prompt_token_ids=[],
                output_token_ids=[],
            )
        )
        first_block += num_blocks
        first_token += count
    return StepPlan(requests), block_size


@given(case=plans(st.one_of(st.just(1), st.integers(1, 30))), tokens_per_tile=st.sampled_from([1, 5, 16]))
def test_every_row_is_where_its_request_says(case: tuple[StepPlan, int], tokens_per_tile: int) -> None:
    plan, block_size = case
    packed = pack(plan, block_size, tokens_per_tile)
    fields = {name: values.tolist() for name, values in packed.fields.items()}
    rows = dict(zip(fields["token_ids"], zip(fields["positions"], fields["slots"], strict=True), strict=True))
    assert packed.num_tokens == plan.num_tokens == len(rows)
    for request in plan.requests:
        for position, token in enumerate(request.token_ids, start=request.num_computed_tokens):
            block = request.block_ids[position // block_size]
            assert rows[token] == (position, block * block_size + position % block_size)
    decodes = [request for request in plan.requests if len(request.token_ids) == 1]
    chunks = [request for request in plan.requests if len(request.token_ids) > 1]
    for row, request in enumerate(decodes):
        assert fields["token_ids"][row] == request.token_ids[0]
        assert fields["contexts"][row] == request.num_computed_tokens + 1
        start = fields["decode_first_blocks"][row]
        assert fields["blocks"][start : start + len(request.block_ids)] == request.block_ids
    for index, request in enumerate(chunks):
        first, start = fields["first_rows"][index], fields["chunk_first_blocks"][index]
        assert fields["token_ids"][first : first + fields["num_tokens"][index]] == request.token_ids
        assert fields["num_computed"][index] == request.num_computed_tokens
        assert fields["blocks"][start : start + len(request.block_ids)] == request.block_ids
    if chunks:
        tiles = set(zip(fields["tile_requests"], fields["tile_tokens"], strict=True))
        assert tiles == {
            (index, first)
            for index, request in enumerate(chunks)
            for first in range(0, len(request.token_ids), tokens_per_tile)
        }
        assert len(tiles) == len(fields["tile_requests"])
    sampled = [request.token_ids[-1] for request in plan.requests if request.samples]
    assert [fields["token_ids"][row] for row in packed.sampled_rows] == sampled


@given(case=plans(st.just(1)), num_padding=st.integers(1, 5))
def test_padding_rows_attend_to_nothing_and_store_nothing(
    case: tuple[StepPlan, int], num_padding: int
) -> None:
    plan, block_size = case
    count = len(plan.requests)
    plain = pack(plan, block_size, 16)
    padded = pack(plan, block_size, 16, count + num_padding)
    for name in ("token_ids", "positions", "slots", "contexts", "decode_first_blocks"):
        assert len(padded.fields[name]) == count + num_padding
        assert padded.fields[name][:count].tolist() == plain.fields[name].tolist()
    assert set(padded.fields["slots"][count:].tolist()) == {-1}
    assert set(padded.fields["contexts"][count:].tolist()) == {0}
    assert padded.fields["items"].tolist() == plain.fields["items"].tolist()
    assert set(padded.fields["first_items"][count:].tolist()) == {len(plain.fields["items"])}


@given(contexts=st.lists(st.one_of(lengths, st.integers(0, 200_000)), min_size=1, max_size=8))
def test_splits_cover_each_context_once(contexts: list[int]) -> None:
    first_items, items = split_items(np.array(contexts, dtype=np.int32))
    for row, context in enumerate(contexts):
        own = items[first_items[row] : first_items[row + 1]].tolist()
        assert own == [row * MAX_SPLITS + split for split in range(shapes.num_splits(context))]
        assert len(own) <= MAX_SPLITS
        size = shapes.split_tokens(context)
        assert size % SPLIT_TOKENS == 0
        assert (len(own) - 1) * size < context <= len(own) * size or context == 0
        assert len(own) <= shapes.max_splits(max(contexts))
    assert first_items[-1] == len(items)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 60, 64, 100, 256])
def test_every_number_of_requests_has_a_bucket_that_is_not_much_larger(max_num_seqs: int) -> None:
    sizes = buckets(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for count in range(1, max_num_seqs + 1):
        size = bucket_for(count, sizes)
        assert size is not None
        assert count <= size <= max(2 * count, count + 15)
    assert bucket_for(max_num_seqs + 1, sizes) is None


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), data=st.data())
def test_fields_arrive_where_the_views_are(sizes: list[int], data: st.DataObject) -> None:
    reserved = {str(index): size for index, size in enumerate(sizes)}
    buffer = InputBuffer(offsets(reserved)[""], torch.device("cpu"))
    views = buffer.views(reserved)
    for _ in range(2):
        fields = {
            name: np.array(data.draw(st.lists(st.integers(0, 2**31 - 1), max_size=size)), dtype=np.int32)
            for name, size in reserved.items()
        }
        buffer.upload(fields, reserved)
        for name, values in fields.items():
            assert views[name][: len(values)].tolist() == values.tolist()
            assert views[name].data_ptr() % 64 == buffer.views({"": 0})[""].data_ptr() % 64
