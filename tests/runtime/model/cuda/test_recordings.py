"""Recorded steps that hold chunks compute what they compute kernel by kernel, and touch nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import VOCAB_SIZE, make_engine, reference, run_to_end, write_model
from runtime_builders import make_request, make_sampling

from stoker_runtime.core.step import ScheduledRequest, StepPlan, sampled_before
from stoker_runtime.engine.engine import Engine
from stoker_runtime.model import loader
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.cuda import decoder as cuda_decoder
from stoker_runtime.model.cuda.decoder import CudaDecoder
from stoker_runtime.model.cuda.rooms import Room, buckets, token_buckets
from stoker_runtime.model.kv_cache import KVCache

BLOCK_SIZE, NUM_BLOCKS = 8, 96
MAX_SEQS, MAX_TOKENS = 6, 24  # recordings of 1, 2, 4 and 6 decodes, and of 16 and 24 tokens with chunks
FEW = ("llama3", "mixtral")
OTHERS = ("gemma2", "qwen3-window", "olmo2", "qwen3-moe", "gemma3", "granite", "smollm3", "phi3")

# Requests of each step: tokens before, tokens computed, how many of those are a draft (-1: none is sampled).
STEPS = {
    "one-chunk": [(0, 15, 0)],
    "chunk-that-fills-it": [(3, 16, 0)],
    "one-more-than-the-smaller": [(3, 16, 0), (9, 1, 0)],
    "decodes-around-a-chunk": [(200, 1, 0), (0, 7, 0), (31, 1, 0), (40, 1, 0)],
    "chunks": [(60, 2, 0), (0, 5, 0), (130, 9, 0), (17, 1, 0), (0, 7, 0)],
    "nothing-is-sampled": [(16, 23, -1)],
    "some-are-not-sampled": [(8, 1, -1), (16, 16, -1), (90, 1, 0)],
    "drafts": [(20, 4, 3), (7, 1, 0), (33, 3, 2)],
}


def make_decoder(folder: Path, family: str, device: torch.device) -> CudaDecoder:
    write_model(folder, family)
    architecture = read_config_json(folder / "config.json")
    with SafetensorsSource(folder) as source:
        decoder = CudaDecoder(architecture, Assembly(architecture, source, torch.float32, device))
    decoder.set_max_positions(architecture.max_position)
    return decoder


def make_plan(requests: Sequence[tuple[int, int, int]], placeholder: int | None = None) -> StepPlan:
    """A plan whose requests have blocks of their own; with a placeholder, of its first decode."""
    scheduled: list[ScheduledRequest] = []
    first_block = 1
    for index, (computed, count, num_drafts) in enumerate(requests):
        num_blocks = -(-(computed + count) // BLOCK_SIZE)
        tokens = [(11 * index + 5 * i + 3) % VOCAB_SIZE for i in range(count)]
        if count == 1 and placeholder is not None:
            tokens, placeholder = [sampled_before(placeholder)], None
        scheduled.append(
            ScheduledRequest(
                request_id=str(index),
                token_ids=tokens,
                num_computed_tokens=computed,
                block_ids=list(range(first_block, first_block + num_blocks))[::-1],
                samples=num_drafts >= 0,
                sampling=make_sampling(),
                seed=0,
                prompt_token_ids=[],
                output_token_ids=[],
                num_draft_tokens=max(0, num_drafts),
            )
        )
        first_block += num_blocks
    assert first_block <= NUM_BLOCKS
    return StepPlan(scheduled)


def stored_cache(decoder: CudaDecoder, plan: StepPlan) -> KVCache:
    """A cache that holds random keys and values of what the plan has computed, and NaN everywhere else."""
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(decoder.architecture, NUM_BLOCKS, BLOCK_SIZE, torch.float32, decoder.device)
    content = torch.randn(cache.storage.shape, generator=generator)
    is_stored = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, dtype=torch.bool)
    for request in plan.requests:
        for position in range(request.num_computed_tokens):
            is_stored[request.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE] = True
    content[:, :, ~is_stored] = float("nan")
    cache.storage.copy_(content)
    return cache


def spy_on_replays(decoder: CudaDecoder) -> list[Room]:
    """Return the list to which each replay will add its room."""
    replayed: list[Room] = []
    recordings: Any = decoder._recordings

    def spy(room: Room, replay: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            replayed.append(room)
            replay()

        return run

    for room, replay in list(recordings.replays.items()):
        recordings.replays[room] = spy(room, replay)
    return replayed


def assert_recorded_steps_equal_others(decoder: CudaDecoder, names: Sequence[str]) -> None:
    tolerance = 1e-5 if decoder.device.type == "cpu" else 1e-3
    for name in names:
        plan = make_plan(STEPS[name], placeholder=2)
        cache, other = stored_cache(decoder, plan), stored_cache(decoder, plan)
        decoder.record(cache, buckets(MAX_SEQS), token_buckets(MAX_TOKENS))
        replayed = spy_on_replays(decoder)
        if decoder.device.type == "cuda":
            cache.storage.copy_(other.storage)  # recording runs what it records
        decoder.feed(torch.tensor([5, 6, 7, 8], dtype=torch.int32, device=decoder.device))
        with torch.inference_mode():
            expected = decoder(plan, other).clone()
            assert not replayed
            found = decoder(plan, cache).clone()
        assert [room.rows for room in replayed] == [16 if plan.num_tokens <= 16 else 24], name
        assert found.shape == (len(plan.positions()), VOCAB_SIZE)
        # Products of other numbers of rows, which padding makes, are added up in another order.
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(cache.storage, other.storage, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("family", FEW)
def test_recorded_steps_with_chunks_equal_others(family: str, device: torch.device, tmp_path: Path) -> None:
    assert_recorded_steps_equal_others(make_decoder(tmp_path, family, device), [*STEPS][3:])


def test_recorded_steps_around_the_borders_equal_others(device: torch.device, tmp_path: Path) -> None:
    assert_recorded_steps_equal_others(make_decoder(tmp_path, "llama", device), [*STEPS][:3])


@pytest.mark.long
@pytest.mark.parametrize("family", OTHERS)
def test_recorded_steps_with_chunks_equal_others_in_other_families(
    family: str, device: torch.device, tmp_path: Path
) -> None:
    assert_recorded_steps_equal_others(make_decoder(tmp_path, family, device), [*STEPS])


def test_one_recording_serves_steps_of_any_mix(device: torch.device, tmp_path: Path) -> None:
    """What a step before left in the buffer must not matter: many chunks and decodes, then few."""
    decoder = make_decoder(tmp_path, "llama", device)
    mixes = [
        [(0, 2, 0)] * 4 + [(180, 1, 0)] * 2,
        [(0, 9, 0)],
        [(50, 1, 0), (3, 6, 0)],
        [(0, 3, 0)] * 5,
        [(0, 2, -1)],
    ]
    cache = KVCache(decoder.architecture, NUM_BLOCKS, BLOCK_SIZE, torch.float32, decoder.device)
    decoder.record(cache, buckets(MAX_SEQS), token_buckets(16))
    replayed = spy_on_replays(decoder)
    for mix in mixes:
        plan = make_plan(mix)
        content = stored_cache(decoder, plan)
        cache.storage.copy_(content.storage)
        with torch.inference_mode():
            found = decoder(plan, cache).clone()
            expected = decoder(plan, content)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if device.type == "cpu" else 1e-3)
    assert [room.rows for room in replayed] == [16] * len(mixes)


@pytest.fixture
def make_recorded_engine(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Engine, list[Room]]]:
    """Makes engines with recordings, and the list of those that are replayed."""

    def make(family: str, **settings: Any) -> tuple[Engine, list[Room]]:
        write_model(tmp_path, family)
        monkeypatch.setattr(loader, "_decoder", lambda _, *parts: CudaDecoder(*parts))
        engine = make_engine(tmp_path, device=device.type, block_size=BLOCK_SIZE, budget=32, **settings)
        runner: Any = engine._runner
        runner.decoder.record(runner.cache, buckets(MAX_SEQS), token_buckets(MAX_TOKENS))
        return engine, spy_on_replays(runner.decoder)

    return make


@pytest.mark.parametrize("scheduling", [pytest.param("off", marks=pytest.mark.long), "auto"])
@pytest.mark.parametrize("family", ["llama", pytest.param("mixtral", marks=pytest.mark.long)])
def test_prefix_hits_and_preemptions_in_recorded_steps_equal_the_reference(
    family: str, scheduling: str, make_recorded_engine: Callable[..., tuple[Engine, list[Room]]]
) -> None:
    engine, replayed = make_recorded_engine(family, num_blocks=9, async_scheduling=scheduling)
    shared = [(3 * i + 1) % VOCAB_SIZE for i in range(16)]
    requests = [make_request([*shared, 7, *range(i)], max_tokens=20 - i) for i in range(3)]
    requests.append(make_request([9, 8, 7, 6], max_tokens=18))
    outputs = run_to_end(engine, {index: [request] for index, request in enumerate(requests)})
    stats = engine.step().stats
    assert stats.prefix_hits > 0
    assert stats.num_preemptions > 0
    assert {16, 24} <= {room.rows for room in replayed if room.chunks}
    assert any(not room.chunks for room in replayed)
    for request in requests:
        assert len(outputs[request.request_id]) == request.sampling.max_tokens
        assert reference(family).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0


def test_what_was_recorded_is_said_in_the_log(
    device: torch.device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = make_decoder(tmp_path, "llama", device)
    cache = KVCache(decoder.architecture, 1, BLOCK_SIZE, torch.float32, decoder.device)
    with caplog.at_level(logging.INFO):
        decoder.record(cache, [1, 2, 3], [16, 24])
    assert "recorded 3 steps of up to 3 decodes and 2 of up to 24 tokens with prompts: " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        decoder.record(cache, [3], [])
        assert "recorded 1 steps of up to 3 decodes and 0 of up to 0 tokens" in caplog.text
        caplog.clear()
        decoder.record(cache, [], [])
    assert not caplog.text
    assert decoder._recordings is None


def test_without_recordings_steps_are_launched_kernel_by_kernel(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder, plan = make_decoder(tmp_path, "llama", device), make_plan(STEPS["one-chunk"])
    cache = stored_cache(decoder, plan)
    with torch.inference_mode():
        expected = decoder(plan, cache).clone()

    def fail(error: Exception) -> None:
        def make(*_: object) -> None:
            raise error

        monkeypatch.setattr(cuda_decoder, "make_recordings", make)

    fail(RuntimeError("operation not permitted when stream is capturing"))
    decoder.record(cache, [1, 2], [16])
    assert "kernel by kernel, which is slower: recording failed: operation not permitted" in caplog.text
    with torch.inference_mode():
        assert torch.equal(decoder(plan, cache), expected)
    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        decoder.record(cache, [1, 2], [16])
