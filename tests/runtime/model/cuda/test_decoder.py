"""The whole decoder over the kernels: greedy tokens equal `transformers`, recorded steps included."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import FAMILIES, MIXTURES, VOCAB_SIZE, make_engine, reference, run_to_end, write_model
from runtime_builders import make_request, make_sampling

from stoker_runtime.config import EngineConfig
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.engine.engine import Engine
from stoker_runtime.model import loader
from stoker_runtime.model.architecture import Architecture, ExpertSettings, Family, LayerKind
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.cuda import check, support
from stoker_runtime.model.cuda.decoder import CudaDecoder
from stoker_runtime.model.cuda.rooms import buckets, token_buckets
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.kv_cache import KVCache
from stoker_runtime.model.runner import run_step

MakeEngine = Callable[..., Engine]
# one of each: rope's scaling, windows, both norms of queries and keys, norms behind, caps, experts
FEW = ("llama3", "qwen3-window", "olmo2", "gemma2", "mixtral", "qwen3-moe")


@pytest.fixture
def make_cuda_engine(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Makes engines whose decoder is CudaDecoder, on the CPU as well."""

    def decoder(_: EngineConfig, architecture: Architecture, assembly: Assembly) -> CudaDecoder:
        return CudaDecoder(architecture, assembly)

    def make(family: str, **settings: Any) -> Engine:
        write_model(tmp_path, family)
        return make_engine(tmp_path, device=device.type, **settings)

    monkeypatch.setattr(loader, "_decoder", decoder)
    monkeypatch.setattr(loader, "buckets", lambda _: [])
    return make


def decoder_of(engine: Engine) -> CudaDecoder:
    decoder = engine._runner.decoder  # type: ignore[attr-defined]
    assert isinstance(decoder, CudaDecoder)
    return decoder


def record(engine: Engine, max_num_seqs: int, max_tokens: int = 16) -> None:
    cache = engine._runner.cache  # type: ignore[attr-defined]
    decoder_of(engine).record(cache, buckets(max_num_seqs), token_buckets(max_tokens))


def prompts(count: int, longest: int) -> list[list[int]]:
    return [
        [(7 * i + 3 * j * j + j) % VOCAB_SIZE for j in range(1 + i * longest // count)] for i in range(count)
    ]


def assert_a_mix_equals_the_reference(engine: Engine, family: str, max_tokens: int, count: int = 4) -> None:
    """Requests that arrive one after the other, in chunks beside decodes, then decodes alone."""
    requests = [
        make_request(prompt, max_tokens=max_tokens + 2 * i) for i, prompt in enumerate(prompts(count, 30))
    ]
    outputs = run_to_end(engine, {2 * i: [request] for i, request in enumerate(requests)})
    for request in requests:
        assert len(outputs[request.request_id]) == request.sampling.max_tokens
        assert reference(family).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0


@pytest.mark.parametrize("family", FEW)
def test_a_mix_equals_the_reference(family: str, make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine(family, num_blocks=32, block_size=8, budget=24)
    record(engine, 8)
    assert_a_mix_equals_the_reference(engine, family, max_tokens=1, count=3)


@pytest.mark.parametrize(
    "family", [FEW[0], *(pytest.param(name, marks=pytest.mark.long) for name in FEW[1:])]
)
def test_a_larger_mix_equals_the_reference(family: str, make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine(family, num_blocks=32, block_size=8, budget=24)
    record(engine, 8)
    assert_a_mix_equals_the_reference(engine, family, max_tokens=2)


@pytest.mark.long
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in FEW])
def test_a_mix_equals_the_reference_in_every_other_family(family: str, make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine(family, num_blocks=32, block_size=8, budget=24)
    record(engine, 8)
    assert_a_mix_equals_the_reference(engine, family, max_tokens=1, count=3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_mix_over_an_fp8_cache_equals_the_plain_decoder(
    family: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, family)
    found: list[dict[str, list[int]]] = []
    monkeypatch.setattr(loader, "_kv_dtype", lambda *_: FP8)
    monkeypatch.setattr(loader, "buckets", lambda _: [])
    requests = [make_request(prompt, max_tokens=3) for prompt in prompts(3, 30)]
    for kind in (CudaDecoder, Decoder):
        monkeypatch.setattr(loader, "_decoder", lambda _, *parts, kind=kind: kind(*parts))
        engine = make_engine(tmp_path, device=device.type, num_blocks=64, block_size=8, budget=24)
        assert engine._runner.cache.storage.dtype == FP8  # type: ignore[attr-defined]
        found.append(run_to_end(engine, {2 * i: [request] for i, request in enumerate(requests)}))
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.parametrize("family", MIXTURES)
def test_preempted_mixtures_equal_the_reference(family: str, make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine(family, num_blocks=7, block_size=8, budget=24, prefix_caching=False)
    record(engine, 8)
    requests = [make_request(prompt, max_tokens=12) for prompt in prompts(4, 20)]
    outputs = run_to_end(engine, {0: requests})
    assert engine.step().stats.num_preemptions > 0
    for request in requests:
        assert reference(family).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0


@pytest.mark.long
@pytest.mark.parametrize("family", MIXTURES)
def test_prefix_hits_of_mixtures_equal_the_reference(family: str, make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine(family, num_blocks=32, block_size=8, budget=24)
    shared = prompts(2, 40)[1]
    requests = [make_request(shared, max_tokens=2), make_request([*shared, 5], max_tokens=3)]
    for request in requests:
        outputs = run_to_end(engine, {0: [request]})
        assert reference(family).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0
    assert engine.step().stats.prefix_hits > 0


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_recorded_steps_equal_others(
    family: str, device: torch.device, make_cuda_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[bool, list[torch.Tensor]] = {}
    plain = CudaDecoder.__call__
    for is_recorded in (False, True):
        seen = found[is_recorded] = []

        def spy(self: CudaDecoder, *args: Any, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            logits = plain(self, *args)
            seen.append(logits.clone())
            return logits

        engine = make_cuda_engine(family, num_blocks=32, block_size=8, budget=24)
        if is_recorded:
            record(engine, 4)  # 3 requests run in a recording of 4
        monkeypatch.setattr(CudaDecoder, "__call__", spy)
        requests = [make_request(prompt, max_tokens=2) for prompt in prompts(3, 20)]
        run_to_end(engine, {0: requests})
        monkeypatch.setattr(CudaDecoder, "__call__", plain)
    assert len(found[True]) == len(found[False])
    for recorded, other in zip(found[True], found[False], strict=True):
        # Products of other numbers of rows, which padding makes, are added up in another order.
        torch.testing.assert_close(recorded, other, rtol=0, atol=1e-5 if device.type == "cpu" else 1e-3)


def test_recordings_are_for_one_cache_and_for_decodes_that_fit(make_cuda_engine: MakeEngine) -> None:
    engine = make_cuda_engine("llama", num_blocks=32, block_size=8, budget=24)
    record(engine, 2, max_tokens=1)
    replayed: list[int] = []
    recordings: Any = decoder_of(engine)._recordings

    def spy(size: int, replay: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            replayed.append(size)
            replay()

        return run

    for room, replay in list(recordings.replays.items()):
        recordings.replays[room] = spy(room.rows, replay)
    requests = [make_request(prompt, max_tokens=6 - i) for i, prompt in enumerate(prompts(3, 6))]
    outputs = run_to_end(engine, {0: requests})
    assert set(replayed) == {1, 2}  # three at once do not fit
    for request in requests:
        assert reference("llama").num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0
    replayed.clear()
    decoder = decoder_of(engine)
    other_cache = KVCache(decoder.architecture, 1, 8, torch.float32, decoder.device)
    run_step(decoder, other_cache, one_token_plan())
    assert not replayed
    run_step(decoder, recordings.cache, one_token_plan())
    assert replayed == [1]


@pytest.mark.parametrize("max_recorded", [pytest.param(0, marks=pytest.mark.long), 4])
def test_steps_in_flight_give_the_same_tokens(make_cuda_engine: MakeEngine, max_recorded: int) -> None:
    """Greedy and drawn, with top_k and top_p, stop tokens, log-probabilities and a penalty."""
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 9}
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 7},
        {**drawn, "top_k": 5, "top_p": 0.9, "min_tokens": 2, "stop_token_ids": tuple(range(0, 160, 9))},
        {**drawn, "logprobs": 2},
        {**drawn, "presence_penalty": 0.5},
    ]
    found = []
    for scheduling in ("off", "auto"):
        engine = make_cuda_engine(
            "llama", num_blocks=32, block_size=8, budget=24, async_scheduling=scheduling
        )
        if max_recorded:
            record(engine, max_recorded)
        assert engine._max_in_flight == (1 if scheduling == "off" else 2)
        requests = [
            make_request(prompt, request_id=str(index), **sampling)
            for index, (prompt, sampling) in enumerate(zip(prompts(4, 20), kinds, strict=True))
        ]
        found.append(run_to_end(engine, {index: [request] for index, request in enumerate(requests)}))
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_step_without_memory_spoils_neither_the_one_before_nor_those_behind(
    make_cuda_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_cuda_engine("llama", num_blocks=32, block_size=8, budget=24)
    record(engine, 4)
    requests = [
        make_request(prompt, request_id=str(i), max_tokens=6) for i, prompt in enumerate(prompts(2, 20))
    ]
    expected = run_to_end(engine, {0: requests})
    plain = CudaDecoder.__call__
    num_steps = 0

    def fail_once(self: CudaDecoder, *args: Any) -> torch.Tensor:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *args)

    monkeypatch.setattr(CudaDecoder, "__call__", fail_once)
    for request in requests:
        engine.add(request)
    found: dict[str, list[int]] = {"0": [], "1": []}
    errors = []
    while engine.has_work:
        for output in engine.step().outputs:
            found[output.request_id] += output.token_ids
            errors += [output.error] if output.error else []
        engine.scheduler.check()
    assert len(errors) == 2
    assert found == {name: tokens[:3] for name, tokens in expected.items()}
    assert run_to_end(engine, {0: requests}) == expected


def one_token_plan() -> StepPlan:
    request = ScheduledRequest("a", [5], 0, [0], True, make_sampling(), 0, [5], [])
    return StepPlan([request])


def architecture(
    num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 64, experts: ExpertSettings | None = None
) -> Architecture:
    return Architecture(
        name="Some",
        family=Family(),
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        max_position=512,
        tied_embeddings=False,
        stored_dtype=None,
        layers=(LayerKind(None, 30),),
        experts=experts,
    )


SOME_EXPERTS = ExpertSettings(num_experts=20, num_per_token=3, intermediate_size=530, normalizes_weights=True)


def test_the_check_at_start_passes(device: torch.device) -> None:
    for dtype in (torch.float32, torch.float16):
        for kv_dtype in (dtype, FP8):
            assert check.deviation(architecture(), 16, dtype, kv_dtype, device) is None
        assert support.is_usable(architecture(), 5, dtype, dtype, device)


def test_kernels_that_compute_wrongly_are_not_used(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(check, "attend_chunks", lambda *_: None)
    assert not support.is_usable(architecture(), 16, torch.float32, torch.float32, device)
    assert "compute wrongly on this device" in caplog.text


def test_the_check_at_start_asks_experts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = architecture(experts=SOME_EXPERTS)
    for dtype in (torch.float32, torch.float16):
        assert check.deviation(mixture, 16, dtype, dtype, device) is None
    monkeypatch.setattr(check, "answer", lambda _mixture, rows, *_: torch.zeros_like(rows))
    assert not support.is_usable(mixture, 16, torch.float32, torch.float32, device)
    assert "experts differ by" in caplog.text


def test_kernels_that_cannot_run_are_not_used(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(check, "rotate_and_store", fail)
    assert not support.is_usable(architecture(), 16, torch.float32, torch.float32, device)
    assert "RuntimeError: Failed to find C compiler" in caplog.text


def test_without_triton_steps_are_computed_by_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(support, "find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert not support.is_usable(architecture(), 16, torch.float32, torch.float32, torch.device("cpu"))
    assert "Triton is not installed" in caplog.text


def test_an_interpreter_on_a_cuda_device_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not support.is_usable(architecture(), 16, torch.float32, torch.float32, torch.device("cuda"))
    assert "TRITON_INTERPRET=1" in caplog.text


@pytest.mark.parametrize(("num_heads", "head_dim"), [(33, 64), (4, 320)])
def test_shapes_without_a_tile_are_not_computed(num_heads: int, head_dim: int) -> None:
    odd = architecture(num_heads, 1, head_dim)
    assert not support.is_usable(odd, 16, torch.float32, torch.float32, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", *MIXTURES])
def test_the_loader_takes_the_kernels_on_a_cuda_device(family: str, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    engine = make_engine(tmp_path, device="cuda")
    assert decoder_of(engine)._recordings is not None
    assert_a_mix_equals_the_reference(engine, family, max_tokens=8)
