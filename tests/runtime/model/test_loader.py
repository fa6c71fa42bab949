"""From an EngineConfig to a loaded runner: sizes, automatic settings, refusals, and damage that stays put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import (
    FAMILIES,
    MAX_POSITION,
    VOCAB_SIZE,
    make_engine,
    reference,
    run_to_end,
    smollm2_path,
    write_model,
    write_tokenizer,
)
from runtime_builders import make_request, make_sampling

from stoker_runtime.config import MAX_CPU_KV_CACHE_BYTES, Dtype, EngineConfig, Quantization
from stoker_runtime.core.step import ScheduledRequest, StepPlan
from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.model import loader
from stoker_runtime.model.architecture import Architecture, Family, LayerKind, RopeSettings
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.kv_cache import KVCache, block_bytes
from stoker_runtime.model.linear import Linear, PackedLinear, packed, packing_works
from stoker_runtime.model.loader import has_fast_bfloat16, load_runner
from stoker_runtime.model.native.library import find_kernels
from stoker_runtime.model.picker import TorchPicker
from stoker_runtime.model.runner import ModelRunner, run_step
from stoker_runtime.tokenizer_files import load_assets


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder, "llama", eos_token_id=7)
    write_tokenizer(folder, 256)
    return folder


def config(model: Path, **settings: Any) -> EngineConfig:
    fixed = {"device": "cpu", "dtype": "float32", "seed": 0, "kernel_choices": "defaults"}
    return EngineConfig(**{"model": str(model), **fixed, **settings})


def scheduled(name: str, token_ids: list[int], block_ids: list[int], computed: int = 0) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=name,
        token_ids=token_ids,
        num_computed_tokens=computed,
        block_ids=block_ids,
        samples=True,
        sampling=make_sampling(logprobs=1),
        seed=0,
        prompt_token_ids=token_ids,
        output_token_ids=[],
    )


def test_ready_describes_the_loaded_model(model: Path) -> None:
    per_block = block_bytes(read_config_json(model / "config.json"), 16, torch.float32)
    ready = load_runner(config(model, kv_cache_bytes=20 * per_block + 1)).ready()
    parameters = sum(p.numel() for p in reference("llama").model.parameters())
    assert (ready.num_blocks, ready.block_size, ready.kv_cache_bytes) == (20, 16, 20 * per_block)
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert (ready.vocab_size, ready.max_model_len, ready.eos_token_ids) == (VOCAB_SIZE, MAX_POSITION, (7,))
    assert ready.weights_bytes == parameters * 4
    assert ready.load_s > 0


@pytest.mark.parametrize(
    ("quantization", "block_size", "bits"),
    [
        pytest.param("none", 4, 16, id="pytorch"),
        pytest.param("none", 16, 16, id="kernels"),
        pytest.param("int8", 16, 8.5, id="int8"),  # 32 weights share a scale of 16 bits
    ],
)
def test_weights_count_as_they_lie_in_memory(
    quantization: Quantization, block_size: int, bits: float, tmp_path: Path
) -> None:
    if not has_fast_bfloat16() or find_kernels(torch.bfloat16, 1) is None:
        pytest.skip("this machine computes nothing in bfloat16")
    theirs = write_model(tmp_path, "llama", tie_word_embeddings=True)
    settings: dict[str, Any] = {"dtype": "bfloat16", "block_size": block_size, "quantization": quantization}
    ready = load_runner(config(tmp_path, kv_cache_bytes=2**20, **settings)).ready()
    parameters = dict(theirs.named_parameters())
    products = sum(p.numel() for name, p in parameters.items() if "proj" in name)
    table = parameters["model.embed_tokens.weight"].numel()
    norms = sum(p.numel() for name, p in parameters.items() if "norm" in name)
    # the table a second time as rows of lm_head, which are packed
    assert ready.weights_bytes == (products + table) * bits / 8 + (table + norms) * 2


def test_automatic_kv_cache_on_a_cpu_stays_small(model: Path) -> None:
    ready = load_runner(config(model)).ready()
    assert 0 < ready.kv_cache_bytes <= MAX_CPU_KV_CACHE_BYTES


@pytest.mark.parametrize("is_fast", [True, False])
def test_automatic_dtype_on_a_cpu_follows_its_instructions(
    is_fast: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "has_fast_bfloat16", lambda: is_fast)
    runner = load_runner(config(model, dtype="auto"))
    assert runner.ready().dtype == ("bfloat16" if is_fast else "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_close_to_the_reference(family: str, dtype: str, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    runner = load_runner(config(tmp_path, dtype=dtype))
    prompt = list(range(10, 50))
    (token,) = runner.step(StepPlan([scheduled("a", prompt, [3, 1, 2])])).sampled
    with torch.inference_mode():
        logprobs = reference(family).model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
    assert token.logprob is not None
    assert token.logprob.logprob == pytest.approx(logprobs[token.token_id].item(), abs=0.15)
    assert logprobs.max() - logprobs[token.token_id] < 0.15


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemmas_embeddings_are_scaled_as_in_transformers(family: str, dtype: Dtype, tmp_path: Path) -> None:
    """By a factor that is rounded first: sqrt(96) is 9.8125 in bfloat16, and 0.15 % less in float32."""
    theirs = write_model(tmp_path, family, hidden_size=96).to(getattr(torch, dtype))
    runner: Any = load_runner(config(tmp_path, dtype=dtype))
    tokens = torch.tensor([[7, 9]])
    with torch.inference_mode():
        scaled = theirs.get_input_embeddings()(tokens)
        plain = torch.nn.functional.embedding(tokens, theirs.get_input_embeddings().weight)
    assert torch.equal(scaled, plain * runner.decoder.architecture.scales.embedding)


def test_longest_request_shrinks_to_the_cache_when_nobody_chose_it(model: Path) -> None:
    per_block = block_bytes(read_config_json(model / "config.json"), 16, torch.float32)
    assert load_runner(config(model, kv_cache_bytes=4 * per_block)).ready().max_model_len == 64


def test_chosen_longest_request_that_cannot_fit_is_out_of_memory(model: Path) -> None:
    per_block = block_bytes(read_config_json(model / "config.json"), 16, torch.float32)
    with pytest.raises(ModelError, match="--kv-cache-memory") as caught:
        load_runner(config(model, kv_cache_bytes=4 * per_block, max_model_len=65))
    assert caught.value.reason == "OutOfMemory"


def test_cache_without_a_block_is_out_of_memory(model: Path) -> None:
    with pytest.raises(ModelError, match="--kv-cache-memory") as caught:
        load_runner(config(model, kv_cache_bytes=1))
    assert caught.value.reason == "OutOfMemory"


def test_cache_that_memory_could_never_hold_is_out_of_memory(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "memory_limit_bytes", lambda: 3 * 2**20)
    assert load_runner(config(model, kv_cache_bytes=2**20)).ready().num_blocks > 0
    with pytest.raises(ModelError, match="--kv-cache-memory is 3 MiB, which the 3 MiB that") as caught:
        load_runner(config(model, kv_cache_bytes=3 * 2**20))
    assert caught.value.reason == "OutOfMemory"


def test_longest_request_beyond_the_model_is_a_configuration_error(model: Path) -> None:
    with pytest.raises(ConfigError, match=f"--max-model-len is 257.*{MAX_POSITION}"):
        load_runner(config(model, max_model_len=MAX_POSITION + 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_a_configuration_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="--device is cuda"):
        load_runner(config(model, device="cuda"))


def test_an_fp8_cache_on_a_cpu_is_a_configuration_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype is fp8, which needs a CUDA device; use auto"):
        load_runner(config(model, kv_cache_dtype="fp8"))


def test_recorded_steps_on_a_cpu_are_a_configuration_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="--max-recorded-tokens is 9, which needs a CUDA device"):
        load_runner(config(model, max_recorded_tokens=9))


def test_nothing_there_is_model_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_runner(config(tmp_path / "none"))
    assert caught.value.reason == "ModelNotFound"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="cuda"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), id="torch"),
        pytest.param(MemoryError(), id="python"),
    ],
)
def test_memory_that_runs_out_while_loading_is_out_of_memory(
    error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loader, "Assembly", fail)
    with pytest.raises(ModelError, match="memory") as caught:
        load_runner(config(model))
    assert caught.value.reason == "OutOfMemory"


def test_other_errors_while_loading_are_not_disguised(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(loader, "Assembly", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        load_runner(config(model))


def test_eos_ids_beyond_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    write_model(tmp_path, "llama", eos_token_id=[3, VOCAB_SIZE + 5])
    assert load_runner(config(tmp_path)).ready().eos_token_ids == (3,)


def test_an_empty_plan_gives_nothing(model: Path) -> None:
    assert load_runner(config(model)).step(StepPlan([])).sampled == []


def test_numbers_that_are_not_finite_stay_with_their_request(model: Path) -> None:
    runner = load_runner(config(model, block_size=4))
    assert isinstance(runner, ModelRunner)
    prompt = list(range(20, 30))
    healthy = scheduled("healthy", prompt, [5, 6, 7])
    runner.step(StepPlan([healthy]))
    expected = runner.step(StepPlan([scheduled("healthy", [4], [5, 6, 7], computed=10)])).sampled[0]
    # a longer neighbour whose cache is spoilt, and spoilt leftovers behind the healthy request's last token
    runner.cache.storage[:, :, 20:24] = float("nan")
    runner.cache.storage[:, :, 7, 3] = float("nan")
    spoilt = scheduled("spoilt", [4], [20, 21, 22, 23], computed=15)
    sampled = runner.step(StepPlan([spoilt, scheduled("healthy", [4], [5, 6, 7], computed=10)])).sampled
    assert [token.request_id for token in sampled] == ["spoilt", "healthy"]
    assert sampled[0].error is not None
    assert sampled[1].token_id == expected.token_id
    chunk = runner.step(StepPlan([scheduled("healthy", [4, 5], [5, 6, 7], computed=9), spoilt])).sampled
    assert (chunk[0].error, chunk[1].error is None) == (None, False)


def make_architecture() -> Architecture:
    return Architecture(
        name="llama",
        vocab_size=8,
        hidden_size=64,
        intermediate_size=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position=64,
        tied_embeddings=False,
        stored_dtype=None,
        family=Family(),
        layers=(LayerKind(RopeSettings(10000.0, rotary_dim=16)),) * 2,
    )


def test_bfloat16_cache_starts_with_zeros() -> None:
    architecture = make_architecture()
    cache = KVCache(architecture, 3, 4, torch.bfloat16, torch.device("cpu"))
    assert cache.storage.dtype == torch.bfloat16
    assert cache.storage.shape == (2, 2, 3, 4, 2, 16)
    assert cache.num_bytes == 3 * block_bytes(architecture, 4, torch.bfloat16)
    assert not cache.storage.any()


def test_an_fp8_cache_has_twice_the_blocks_of_a_bfloat16_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for name, kv_dtype in (("plain", torch.bfloat16), ("fp8", FP8)):
        monkeypatch.setattr(loader, "_kv_dtype", lambda *_, kv_dtype=kv_dtype: kv_dtype)
        monkeypatch.setattr(loader, "_decoder", lambda _, *parts: Decoder(*parts))
        ready = load_runner(config(model, dtype="bfloat16", kv_cache_bytes=1 << 20)).ready()
        sizes[name] = ready.num_blocks
        assert ready.kv_cache_bytes <= 1 << 20
    assert sizes["fp8"] == 2 * sizes["plain"]


def test_an_fp8_cache_answers_the_same_in_chunks_and_at_once(model: Path) -> None:
    architecture = read_config_json(model / "config.json")
    cpu = torch.device("cpu")
    with SafetensorsSource(model) as source:
        decoder = Decoder(architecture, Assembly(architecture, source, torch.float32, cpu))
    decoder.set_max_positions(MAX_POSITION)
    prompt = list(range(10, 40))
    found: dict[str, torch.Tensor] = {}
    for name, pieces, kv_dtype in (
        ("at once", [30], FP8),
        ("in chunks", [7, 20, 3], FP8),
        ("one by one", [1] * 30, FP8),
        ("plain", [30], torch.float32),
    ):
        cache = KVCache(architecture, 10, 4, kv_dtype, cpu)
        computed = 0
        for count in pieces:
            part = scheduled("a", prompt[computed : computed + count], list(range(1, 9)), computed)
            with torch.inference_mode():
                found[name] = decoder(StepPlan([part]), cache)
            computed += count
    for name in ("in chunks", "one by one"):
        torch.testing.assert_close(found[name], found["at once"], rtol=0, atol=1e-3)
    difference = (found["plain"] - found["at once"]).norm() / found["plain"].norm()
    assert 1e-3 < difference < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_equals_the_plain_product(dtype: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(70, 33, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype) if has_bias else None
    for num_rows in (1, 2, 5, 40):
        rows = torch.randn(num_rows, 33, generator=generator).to(dtype)
        expected = torch.nn.functional.linear(rows, weight, bias)
        assert isinstance(packed(Linear(weight, bias)), PackedLinear) == packing_works(dtype)
        torch.testing.assert_close(packed(Linear(weight, bias))(rows), expected, rtol=2e-2, atol=2e-2)


def test_packing_that_is_not_there_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    def wrong(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros(rows.shape[0], 48)

    module = "stoker_runtime.model.linear"
    monkeypatch.setattr(f"{module}._pack", missing)
    packing_works.cache_clear()
    assert not packing_works(torch.float32)
    weight, rows = torch.randn(8, 4), torch.randn(3, 4)
    torch.testing.assert_close(packed(Linear(weight))(rows), rows @ weight.T)
    monkeypatch.undo()
    monkeypatch.setattr(f"{module}._packed_product", wrong)
    packing_works.cache_clear()
    assert not packing_works(torch.float32)
    monkeypatch.undo()
    packing_works.cache_clear()


@pytest.mark.slow
def test_smollm2_answers_a_question() -> None:
    tokenizer = load_assets(smollm2_path()).tokenizer
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    runner = load_runner(config(smollm2_path(), dtype="auto"))
    token_ids = tokenizer.encode(text).ids
    computed, new = 0, token_ids
    output: list[int] = []
    while len(output) < 8:
        (token,) = runner.step(StepPlan([scheduled("a", new, list(range(10)), computed)])).sampled
        computed += len(new)
        new = [token.token_id]
        output.append(token.token_id)
    assert tokenizer.decode(output, skip_special_tokens=False) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)` 20.00 GiB"),
        MemoryError("memory for 20.00 GiB"),
    ],
)
def test_a_step_that_runs_out_of_memory_fails_its_requests_and_the_next_one_works(
    error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(model)
    healthy, large = make_request([1, 2, 3], max_tokens=4), make_request([4] * 12, max_tokens=4)
    expected = run_to_end(engine, {0: [healthy]})
    runner: Any = engine._runner
    decoder = runner.decoder

    class Greedy:
        device = decoder.device

        def __call__(self, *_: object) -> None:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(runner, "decoder", Greedy())
        engine.add(large)
        (output,) = engine.step().outputs
    assert output.request_id == large.request_id
    assert output.error is not None
    assert "--kv-cache-memory" in output.error
    assert "20.00 GiB" in caplog.text
    engine.scheduler.check()
    assert engine.step().stats.kv_usage == 0
    again = make_request([1, 2, 3], max_tokens=4)
    assert run_to_end(engine, {0: [again]})[again.request_id] == expected[healthy.request_id]


def test_any_other_failure_of_a_step_ends_the_engine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner: Any = engine._runner
    monkeypatch.setattr(runner, "decoder", fail)
    engine.add(make_request([1, 2, 3]))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()


def test_the_step_that_memory_is_measured_with_is_the_largest(model: Path) -> None:
    settings = config(model, max_num_batched_tokens=40, max_num_seqs=4, block_size=8)
    plan = loader.largest_plan(settings, longest=100, vocab_size=160)
    sizes = [(request.num_computed_tokens, len(request.token_ids)) for request in plan.requests]
    assert sizes == [(60, 40), (0, 1), (0, 1), (0, 1)]
    assert len(plan.requests[0].block_ids) == 13
    architecture = read_config_json(model / "config.json")
    cache = KVCache(architecture, 1, 8, torch.float32, torch.device("cpu"))
    decoder = load_runner(config(model, block_size=8)).decoder  # type: ignore[attr-defined]
    result = run_step(decoder, cache, plan)
    assert (len(result.sampled), [len(scored.logprobs) for scored in result.scored]) == (4, [39])
    few = loader.largest_plan(settings, longest=100, vocab_size=2**21)
    assert [request.num_scored for request in few.requests] == [8, 0, 0, 0]


class RecordingStandIn:
    """A decoder on a device of 1000 bytes: 100 for weights, 200 for a step, 1 for each recorded row."""

    def __init__(self, model: Path) -> None:
        self.architecture = read_config_json(model / "config.json")
        self.num_bytes = 100
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.picker = TorchPicker()
        self.recorded: list[tuple[list[int], list[int]]] = []

    @property
    def reserved_bytes(self) -> int:
        return 100 + (sum(map(sum, self.recorded[-1])) if self.recorded else 0)

    def set_max_positions(self, count: int) -> None: ...

    def record(self, cache: KVCache, sizes: list[int], token_sizes: list[int]) -> None:
        assert cache.num_blocks == 1
        self.recorded.append((sizes, token_sizes))

    def __call__(self, plan: StepPlan, cache: KVCache) -> torch.Tensor:
        num_rows = len(plan.logit_rows([0] * len(plan.requests)))
        return torch.zeros(num_rows, self.architecture.vocab_size)


def test_memory_of_the_largest_recordings_is_left_free(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = RecordingStandIn(model)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    scratch_bytes = block_bytes(decoder.architecture, 16, torch.float32)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 300 + scratch_bytes)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: decoder.reserved_bytes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000 - decoder.reserved_bytes, 1000))
    for max_recorded, expected in ((40, 40), (1, 0)):
        settings = config(model, device="cuda", max_num_seqs=4, max_recorded_tokens=max_recorded)
        free = loader._free_cuda_bytes(settings.for_device("cuda"), decoder, torch.float32)
        assert free == 900 - 300 - (4 + expected)
        assert decoder.recorded[-2:] == [([4], [expected] if expected else []), ([], [])]


class CountingStandIn(RecordingStandIn):
    """One that says it is on a device, and notes the sizes of its steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.device = torch.device("cuda")
        self.steps: list[tuple[int, int] | str] = []  # requests and tokens

    def record(self, cache: KVCache, sizes: list[int], token_sizes: list[int]) -> None:
        self.steps.append(f"records {sizes} and {token_sizes}")

    def __call__(self, plan: StepPlan, cache: KVCache) -> torch.Tensor:
        self.steps.append((len(plan.requests), plan.num_tokens))
        return super().__call__(plan, cache)


def test_steps_of_all_sizes_have_run_before_the_first_request(model: Path) -> None:
    """What a GPU compiles for a number of rows beyond those that are recorded, it compiles before."""
    decoder = CountingStandIn(model)
    cache = KVCache(decoder.architecture, 16, 16, torch.float32, torch.device("cpu"))
    settings = config(
        model, device="cuda", max_num_batched_tokens=200, max_num_seqs=3, max_recorded_tokens=16
    )
    loader._warm_up(settings.for_device("cuda"), decoder, cache, longest=64)
    sizes = [(1, size) for size in (1, 2, 4, 8, 16, 32, 64, 64)]
    assert decoder.steps == [(2, 128), "records [1, 2, 3] and [16]", *sizes]


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_the_reference(family: str, tmp_path: Path) -> None:
    write_model(tmp_path, family)
    engine = make_engine(tmp_path, device="cuda", budget=24)
    requests = [make_request([7 * i + j for j in range(1 + 5 * i)], max_tokens=10) for i in range(5)]
    outputs = run_to_end(engine, {i: [request] for i, request in enumerate(requests)})
    for request in requests:
        assert reference(family).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0


@pytest.mark.gpu
def test_automatic_kv_cache_on_cuda_leaves_the_rest_of_the_memory(model: Path) -> None:
    runner = load_runner(config(model, device="cuda", memory_fraction=0.3))
    _, total = torch.cuda.mem_get_info()
    assert 0 < runner.ready().kv_cache_bytes <= 0.3 * total
