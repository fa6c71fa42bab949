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
from stoker_runtime.model.cuda.block_tables import BlockTables
from stoker_runtime.model.cuda.input_buffer import InputBuffer
from stoker_runtime.model.cuda.rooms import MOST_CHUNKS, Room, Rooms, buckets, most_tiles, token_buckets
from stoker_runtime.model.cuda.shapes import MAX_SPLITS, SPLIT_TOKENS
from stoker_runtime.model.cuda.step_layout import largest_fields, offsets, pack, split_items

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
        samples = draw(st.booleans())
        first_scored = draw(st.integers(0, count - samples))
        requests.append(
            ScheduledRequest(
                request_id=str(index),
                token_ids=list(range(first_token, first_token + count)),
                num_computed_tokens=computed,
                block_ids=list(range(first_block, first_block + num_blocks))[::-1],
                samples=samples,
                sampling=make_sampling(),
                seed=0,
                prompt_token_ids=[],
                output_token_ids=[],
                first_scored=first_scored,
                num_scored=draw(st.integers(0, count - samples - first_scored)),
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
    for request in plan.requests:
        sampled += request.token_ids[request.first_scored : request.first_scored + request.num_scored]
    assert [fields["token_ids"][row] for row in packed.sampled_rows] == sampled
    assert packed.samples_each == (packed.sampled_rows == [*range(len(plan.requests))] and not chunks)


@given(case=plans(st.just(1)), num_padding=st.integers(1, 5))
def test_padding_rows_attend_to_nothing_and_store_nothing(
    case: tuple[StepPlan, int], num_padding: int
) -> None:
    plan, block_size = case
    count = len(plan.requests)
    plain = pack(plan, block_size, 16)
    padded = pack(plan, block_size, 16, Room(count + num_padding, count + num_padding))
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


@given(
    case=plans(st.one_of(st.just(1), st.integers(1, 30))),
    tokens_per_tile=st.sampled_from([1, 5, 16]),
    max_requests=st.integers(1, 8),
    token_sizes=st.sets(st.integers(2, 200), max_size=6),
)
def test_what_a_recording_has_too_much_does_nothing(
    case: tuple[StepPlan, int], tokens_per_tile: int, max_requests: int, token_sizes: set[int]
) -> None:
    plan, block_size = case
    rooms = Rooms.of(buckets(max_requests), sorted(token_sizes), tokens_per_tile)
    room = rooms.choose(plan)
    num_chunks = sum(len(request.token_ids) > 1 for request in plan.requests)
    if room is None:
        largest = max(token_sizes, default=0) if num_chunks else max_requests
        assert plan.num_tokens > largest or len(plan.requests) > max_requests
        return
    assert room.rows >= plan.num_tokens
    max_blocks = max(len(request.block_ids) for request in plan.requests)
    plain = pack(plan, block_size, tokens_per_tile, tables=BlockTables(8, max_blocks))
    filled = pack(plan, block_size, tokens_per_tile, room, BlockTables(8, max_blocks))
    reserved = largest_fields(room, MAX_SPLITS, max_blocks)
    assert list(reserved)[-1] == "changes"
    # What is shorter must say its length elsewhere: the device still has the rest of the step before there.
    says_its_length = {"items", "sampled_rows", "changes"}
    unused = {"slots": -1, "tile_requests": -1, "first_items": plain.fields["first_items"][-1]}
    assert reserved.keys() == filled.fields.keys()
    for name, values in filled.fields.items():
        count = len(plain.fields[name])
        assert values[:count].tolist() == plain.fields[name].tolist()
        assert set(values[count:].tolist()) <= {unused.get(name, 0)}
        assert count <= len(values) <= reserved[name]
        assert len(values) == (count if name in says_its_length else reserved[name])
    assert filled.sampled_rows == plain.sampled_rows
    assert (filled.num_decodes, filled.num_tokens) == (plain.num_decodes, room.rows)


@given(counts=st.lists(st.integers(2, 60), min_size=1, max_size=8), tokens_per_tile=st.integers(1, 40))
def test_no_chunks_have_more_tiles_than_there_may_be(counts: list[int], tokens_per_tile: int) -> None:
    num_tiles = sum(-(-count // tokens_per_tile) for count in counts)
    assert num_tiles <= most_tiles(sum(counts), len(counts), tokens_per_tile)
    room = Rooms.of([len(counts)], [sum(counts) + 3], tokens_per_tile).mixed[0]
    assert num_tiles <= room.tiles


def numbered_plan(counts: list[int]) -> StepPlan:
    return StepPlan(
        [
            ScheduledRequest(str(i), list(range(count)), 0, [i], True, make_sampling(), 0, [], [])
            for i, count in enumerate(counts)
        ]
    )


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        pytest.param([1], 1, id="decode"),
        pytest.param([1] * 3, 4, id="decodes"),
        pytest.param([1] * 100, 100, id="most-decodes"),
        pytest.param([1] * 101, None, id="too-many-decodes"),
        pytest.param([2], 16, id="chunk"),
        pytest.param([15, 1], 16, id="full"),
        pytest.param([15, 1, 1], 32, id="one-more"),
        pytest.param([1] * 98 + [2], 112, id="most-requests"),
        pytest.param([1] * 99 + [2, 2], None, id="too-many-requests"),
        pytest.param([112], 112, id="most-tokens"),
        pytest.param([113], None, id="too-many-tokens"),
        pytest.param([2] * (MOST_CHUNKS - 9), 112, id="many-chunks"),
    ],
)
def test_a_step_takes_the_smallest_room_that_holds_it(counts: list[int], rows: int | None) -> None:
    room = Rooms.of(buckets(100), token_buckets(112), 16).choose(numbered_plan(counts))
    assert (None if room is None else room.rows) == rows
    if room is not None:
        assert (room.chunks > 0) == (max(counts) > 1)


def test_a_step_with_more_chunks_than_any_room_has_is_not_recorded() -> None:
    rooms = Rooms.of(buckets(256), token_buckets(512), 16)
    assert rooms.choose(numbered_plan([2] * MOST_CHUNKS)) is not None
    assert rooms.choose(numbered_plan([2] * (MOST_CHUNKS + 1))) is None


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 60, 64, 100, 256])
def test_every_number_of_requests_has_a_bucket_that_is_not_much_larger(max_num_seqs: int) -> None:
    sizes = buckets(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for count in range(1, max_num_seqs + 1):
        size = min(size for size in sizes if size >= count)
        assert size <= max(2 * count, count + 15)


@pytest.mark.parametrize("max_tokens", [2, 15, 16, 17, 64, 100, 512, 2048, 8192])
def test_every_number_of_tokens_has_a_bucket_that_is_not_much_larger(max_tokens: int) -> None:
    sizes = token_buckets(max_tokens)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_tokens
    for count in range(2, max_tokens + 1):
        size = min(size for size in sizes if size >= count)
        assert size - count < max(16 if count <= 64 else 32, count / 8)


def test_without_a_chunk_there_is_no_step_with_chunks_to_record() -> None:
    assert token_buckets(0) == token_buckets(1) == []
    assert len(token_buckets(512)) == 18


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
