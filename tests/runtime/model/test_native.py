"""The C++ kernels: equal to PyTorch's operators, and to themselves whatever else a step computes."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import platform
import re
import resource
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import FAMILIES, MIXTURES, WRAPPED_FAMILIES, make_model, write_model
from native_models import BLOCK_SIZE, DTYPES, TOLERANCE, Model, kernels_for, logits_of, plan, tokens
from torch import Tensor

from loadgen.checkpoints import Gptq, write_quantized
from stoker_runtime.config import EngineConfig, Quantization
from stoker_runtime.errors import ConfigError
from stoker_runtime.model import loader
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.native import library, structs
from stoker_runtime.model.native.decoder import NativeDecoder, is_computed
from stoker_runtime.model.native.library import GROUP, Kernels, find_kernels
from stoker_runtime.model.runner import ModelRunner

MIXED = 2  # times as far in a mixture, where the answer of each of a token's experts is rounded by itself
# Those that see images have the steps of their text parts, with other weights.
COMPUTED = [family for family in FAMILIES if family not in WRAPPED_FAMILIES]


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    kernels = kernels_for(request.param)
    yield kernels
    kernels.close()


@given(
    num_rows=st.integers(1, 40),
    half_inputs=st.integers(1, 90),
    num_outputs=st.integers(1, 130),
    data=st.data(),
)
def test_products_equal_pytorchs(
    kernels: Kernels, num_rows: int, half_inputs: int, num_outputs: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    weight = torch.randn(num_outputs, 2 * half_inputs, generator=generator).to(kernels.dtype)
    bias = (
        torch.randn(num_outputs, generator=generator).to(kernels.dtype) if data.draw(st.booleans()) else None
    )
    rows = torch.randn(num_rows, 2 * half_inputs, generator=generator).to(kernels.dtype)
    linear, kept = kernels.packed(Linear(weight, bias))
    expected = torch.nn.functional.linear(
        rows.double(), weight.double(), None if bias is None else bias.double()
    )
    assert kept
    rounding = 1e-5 if kernels.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(
        kernels.product(linear, rows).double(), expected, rtol=rounding, atol=10 * rounding
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", COMPUTED)
def test_steps_equal_pytorchs(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tmp_path, family, dtype, monkeypatch)
    blocks = (range(1, 4), range(4, 6), range(6, 18))
    steps = (
        plan((tokens(37, 1), 0, blocks[0]), (tokens(5, 2), 0, blocks[1]), (tokens(101, 3), 0, blocks[2])),
        plan(([9], 37, blocks[0]), (tokens(20, 4), 5, blocks[1]), (tokens(70, 5), 101, blocks[2])),
        plan(([8], 38, blocks[0]), ([7], 25, blocks[1]), ([6], 171, blocks[2])),
    )
    native = logits_of(model.native, model.cache(), *steps)
    plain = logits_of(model.plain, model.cache(), *steps)
    tolerance = TOLERANCE[dtype] * (MIXED if family in MIXTURES else 1)
    torch.testing.assert_close(native, plain, rtol=0, atol=tolerance)
    # the same token wherever rounding does not decide it
    leads = plain.topk(2).values.diff().abs().squeeze(1) > 2 * tolerance
    assert torch.equal(native.argmax(dim=-1)[leads], plain.argmax(dim=-1)[leads])


@pytest.mark.parametrize(("num_experts", "num_per_token"), [(4, 2), (40, 4), (128, 2), (200, 3)])
def test_of_equally_probable_experts_the_same_are_chosen(
    num_experts: int, num_per_token: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"num_experts": num_experts, "num_experts_per_tok": num_per_token}
    reference = make_model("qwen3-moe", **counts)
    router = reference.get_parameter("model.layers.1.mlp.gate.weight")
    with torch.no_grad():
        router[:] = router[torch.arange(num_experts) % 3]  # three scores for all of them
    reference.save_pretrained(tmp_path)
    model = Model(tmp_path, "qwen3-moe", torch.float32, monkeypatch)
    prompt = tokens(60, 1)
    native, plain = (
        logits_of(decoder, model.cache(), plan((prompt[:59], 0, range(4)), (prompt[59:], 59, range(4))))
        for decoder in (model.native, model.plain)
    )
    torch.testing.assert_close(native, plain, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("family", MIXTURES)
def test_rows_of_a_mixture_that_are_not_finite_stay_so_and_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_model(family)
    embedding = reference.get_input_embeddings().weight
    with torch.no_grad():
        embedding[7] = float("inf")
    reference.save_pretrained(tmp_path)
    model = Model(tmp_path, family, torch.float32, monkeypatch)
    alone = logits_of(model.native, model.cache(), plan((tokens(20, 1), 0, (0, 1))))
    step = plan(([1, 2, 7], 0, (2,)), (tokens(20, 1), 0, (0, 1)), ([7], 0, (3,)))
    logits = logits_of(model.native, model.cache(), step)
    assert logits.isfinite().all(dim=1).tolist() == [False, True, False]
    assert torch.equal(logits[1], alone[0])


@pytest.mark.parametrize("family", ["llama", "gemma3", *MIXTURES])
@given(cuts=st.sets(st.integers(1, 149), max_size=6), neighbours=st.lists(st.integers(1, 30), max_size=4))
def test_results_do_not_depend_on_chunks_or_neighbours_in_any_bit(
    family: str, cuts: set[int], neighbours: list[int], models: dict[str, Model]
) -> None:
    model = models[family]
    prompt, blocks = tokens(150, 1), range(10)
    (alone,) = logits_of(model.native, model.cache(), plan((prompt, 0, blocks)))
    cache = model.cache()
    borders = [0, *sorted(cuts), len(prompt)]
    for start, end in pairwise(borders):
        others = [
            (tokens(count, index), 0, range(10 + 2 * index, 12 + 2 * index))
            for index, count in enumerate(neighbours)
        ]
        with torch.inference_mode():
            logits = model.native(plan(*others, (prompt[start:end], start, blocks)), cache)
    assert torch.equal(logits[-1], alone)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return {
            family: Model(tmp_path_factory.mktemp(family), family, torch.bfloat16, monkeypatch)
            for family in ("llama", "gemma3", *MIXTURES)
        }


def test_what_another_request_left_in_a_block_is_never_read(models: dict[str, Model]) -> None:
    model = models["llama"]
    cache = model.cache()
    expected = logits_of(model.native, cache, plan((tokens(20, 1), 0, (3, 4))), plan(([5], 20, (3, 4))))
    cache.storage.fill_(float("nan"))
    again = logits_of(model.native, cache, plan((tokens(20, 1), 0, (3, 4))), plan(([5], 20, (3, 4))))
    assert torch.equal(again, expected)


def test_any_number_of_threads_computes_the_same(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, rows = (torch.randn(n, 64, generator=generator).to(kernels.dtype) for n in (200, 9))
    products = []
    for num_threads in (1, 2, 5):
        other = kernels_for(kernels.dtype, num_threads)
        linear, _kept = other.packed(Linear(weight))
        products.append(other.product(linear, rows))
        other.close()
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


@pytest.mark.parametrize(
    ("family", "block_size", "expected"),
    [
        pytest.param("llama", 16, True, id="llama"),
        pytest.param("llama", 64, True, id="larger-blocks"),
        pytest.param("llama", 8, False, id="blocks-that-fill-no-vector"),
        pytest.param("mixtral", 16, True, id="mixture-of-experts"),
    ],
)
def test_which_models_the_kernels_compute(
    family: str, block_size: int, expected: bool, tmp_path: Path
) -> None:
    write_model(tmp_path, family)
    architecture = read_config_json(tmp_path / "config.json")
    assert is_computed(architecture, block_size, "none") is expected


def test_quantized_weights_need_whole_groups(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    architecture = read_config_json(tmp_path / "config.json")
    assert is_computed(architecture, BLOCK_SIZE, "int8")
    assert not is_computed(replace(architecture, intermediate_size=80), BLOCK_SIZE, "int8")
    write_model(tmp_path, "qwen3-moe")  # experts of 48, and one dense layer
    mixture = read_config_json(tmp_path / "config.json")
    assert not is_computed(mixture, BLOCK_SIZE, "int8")
    assert mixture.experts is not None
    assert is_computed(
        replace(mixture, experts=replace(mixture.experts, intermediate_size=64)), BLOCK_SIZE, "int8"
    )
    assert is_computed(replace(architecture, intermediate_size=80), BLOCK_SIZE, "none")


@functools.cache
def quantizing_kernels() -> Kernels:
    return kernels_for(torch.bfloat16)


def quantized(rows: Tensor) -> Tensor:
    """Values as 8-bit integers times a scale for each group of 32."""
    grouped = rows.view(len(rows), -1, GROUP)
    scale = grouped.abs().amax(dim=-1, keepdim=True) / 127
    rounded: Tensor = torch.round(grouped / scale) * scale
    return rounded.flatten(1)


@given(num_rows=st.integers(1, 20), groups=st.integers(1, 9), num_outputs=st.integers(1, 70), data=st.data())
def test_quantized_products_are_those_of_the_quantized_factors(
    num_rows: int, groups: int, num_outputs: int, data: st.DataObject
) -> None:
    kernels = quantizing_kernels()
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    weight = torch.randn(num_outputs, GROUP * groups, generator=generator).bfloat16()
    rows = (torch.randn(num_rows, GROUP * groups, generator=generator) * 3).bfloat16()
    linear, kept = kernels.packed(Linear(weight), is_quantized=True)
    assert kept
    # What is left: scales in float16, values on a border between two integers, the rounding of the result.
    expected = quantized(rows.float()) @ quantized(weight.float()).T
    largest = rows.float().abs().amax(dim=1, keepdim=True) * weight.float().abs().amax(dim=1)
    difference = (kernels.product(linear, rows).float() - expected).abs()
    assert bool((difference <= 2**-8 * expected.abs() + 0.02 * groups**0.5 * largest).all())


def test_quantized_rows_that_are_not_finite_stay_so_and_alone() -> None:
    kernels = quantizing_kernels()
    linear, _kept = kernels.packed(Linear(torch.ones(8, 64).bfloat16()), is_quantized=True)
    rows = torch.ones(4, 64).bfloat16()
    rows[1, 3], rows[2, 40] = float("nan"), float("inf")
    finite = kernels.product(linear, rows).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, False, True]


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3-moe-normalized"])
def test_a_quantized_model_stays_close_to_the_plain_one(family: str, tmp_path: Path) -> None:
    kernels_for(torch.bfloat16).close()
    write_model(tmp_path, family)
    shared = EngineConfig(model=str(tmp_path), device="cpu", dtype="bfloat16", kv_cache_bytes=1 << 22)
    logits = []
    quantizations: tuple[Quantization, ...] = ("none", "int8")
    for quantization in quantizations:
        runner = loader.load_runner(replace(shared, quantization=quantization))
        assert isinstance(runner, ModelRunner)
        logits.append(logits_of(runner.decoder, runner.cache, plan((tokens(40, 1), 0, range(1, 4)))))
    plain, rounded = logits
    assert 0 < (plain - rounded).norm() < 0.1 * plain.norm()


def test_weights_of_a_quantized_checkpoint_are_rounded_to_int8_as_plain_ones_are(tmp_path: Path) -> None:
    kernels_for(torch.bfloat16).close()
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", Gptq(bits=8, group_size=32))
    logits = []
    ways: tuple[tuple[str, Quantization], ...] = (("plain", "none"), ("small", "none"), ("small", "int8"))
    for folder, quantization in ways:
        config = EngineConfig(
            model=str(tmp_path / folder),
            device="cpu",
            dtype="bfloat16",
            kv_cache_bytes=1 << 22,
            quantization=quantization,
        )
        runner = loader.load_runner(config)
        assert isinstance(runner, ModelRunner)
        assert isinstance(runner.decoder, NativeDecoder)
        logits.append(logits_of(runner.decoder, runner.cache, plan((tokens(40, 1), 0, range(1, 4)))))
    plain, small, rounded = logits
    assert 0 < (plain - small).norm() < 0.1 * plain.norm()
    assert 0 < (small - rounded).norm() < 0.1 * plain.norm()


def test_a_quantized_mixture_does_not_depend_on_chunks_or_neighbours_in_any_bit(tmp_path: Path) -> None:
    kernels_for(torch.bfloat16).close()
    write_model(tmp_path, "mixtral")
    config = EngineConfig(
        model=str(tmp_path), device="cpu", dtype="bfloat16", kv_cache_bytes=1 << 22, quantization="int8"
    )
    runner = loader.load_runner(config)
    assert isinstance(runner, ModelRunner)
    prompt, blocks, neighbour = tokens(60, 1), range(4), (tokens(30, 2), 0, range(4, 6))
    (alone,) = logits_of(runner.decoder, runner.cache, plan((prompt, 0, blocks)))
    in_chunks = logits_of(
        runner.decoder,
        runner.cache,
        plan((prompt[:17], 0, blocks), neighbour),
        plan(neighbour, (prompt[17:59], 17, blocks)),
        plan(neighbour, (prompt[59:], 59, blocks)),
    )
    assert torch.equal(in_chunks[-1], alone)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"dtype": "float32"}, id="beside-float32"),
        pytest.param({"block_size": 8}, id="blocks-that-fill-no-vector"),
    ],
)
def test_quantization_that_cannot_be_had_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    config = EngineConfig(model=str(tmp_path), device="cpu", quantization="int8", **settings)
    with pytest.raises(ConfigError, match="--quantization is int8"):
        loader.load_runner(config)


@pytest.fixture
def fresh_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the library that a test may damage or remove."""
    kernels_for(torch.float32).close()
    path = tmp_path / library.PATH.name
    shutil.copy(library.PATH, path)
    monkeypatch.setattr(library, "PATH", path)
    library.find_library.cache_clear()
    yield path
    library.find_library.cache_clear()


def test_a_library_that_is_missing_is_not_used(fresh_library: Path) -> None:
    fresh_library.unlink()
    assert find_kernels(torch.float32, 1) is None


def test_a_damaged_library_is_not_used_and_named(
    fresh_library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh_library.write_bytes(b"\x7fELF nothing else")
    with caplog.at_level(logging.WARNING):
        assert find_kernels(torch.float32, 1) is None
    assert "libstoker_cpu.so cannot be loaded" in caplog.text


def test_a_library_of_another_version_is_not_used(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("more", ctypes.c_int64 * 99),)

    monkeypatch.setattr(structs, "ALL", (*structs.ALL[:-1], Longer))
    with caplog.at_level(logging.WARNING):
        assert find_kernels(torch.float32, 1) is None
    assert "another version" in caplog.text


def test_a_library_that_computes_wrongly_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels_for(torch.float32).close()
    monkeypatch.setattr(
        Kernels, "product", lambda _, linear, rows: torch.zeros(len(rows), linear.num_outputs)
    )
    with caplog.at_level(logging.WARNING):
        assert find_kernels(torch.float32, 1) is None
    assert "computes wrongly" in caplog.text


def test_memory_that_cannot_be_had_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes for weights"):
        library.HugePages().take(1 << 55)


def threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


def test_threads_end_with_the_kernels_and_those_with_their_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels_for(torch.float32).close()  # from here on PyTorch has all of its own
    before = threads()
    kernels = kernels_for(torch.float32, num_threads=4)
    own = threads() - before
    assert len(own) == 3
    del kernels
    assert not own & threads()

    model: Any = Model(tmp_path, "llama", torch.float32, monkeypatch)
    logits_of(model.native, model.cache(), plan((tokens(5, 1), 0, [0])))
    held = weakref.ref(model.native._kernels)
    del model
    gc.collect()
    assert held() is None


def test_threads_that_cannot_be_started_are_a_setting_that_cannot_work() -> None:
    kernels_for(torch.float32).close()
    used, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (64 << 20), hard))
    before = threads()
    try:
        with pytest.raises(ConfigError, match="4096 compute threads cannot be started"):
            find_kernels(torch.float32, 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (used, hard))
    assert threads() == before


def address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_a_step_without_memory_fails_its_requests_and_the_next_one_works(tmp_path: Path) -> None:
    kernels_for(torch.float32).close()
    write_model(tmp_path, "llama", intermediate_size=8192, max_position_embeddings=4096)
    config = EngineConfig(
        model=str(tmp_path), device="cpu", dtype="float32", num_threads=2, kv_cache_bytes=16 << 20
    )
    runner = loader.load_runner(config)
    small = plan((tokens(3, 1), 0, [0]))
    expected = runner.step(small)
    used, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (16 << 20), hard))
    try:
        failed = runner.step(plan((tokens(4000, 2), 0, range(250))))  # 130 MB of activations
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (used, hard))
    assert failed.sampled == []
    assert failed.error is not None
    assert "--kv-cache-memory" in failed.error
    assert runner.step(small) == expected


def test_weights_share_regions_without_overlap() -> None:
    memory = library.HugePages(region_bytes=4096)
    parts = [memory.take(size) for size in (100, 65, 4000, 9000, 1)]
    for value, part in enumerate(parts):
        part.fill_(value)
    assert [len(part) for part in parts] == [100, 65, 4000, 9000, 1]
    assert all(bool((part == value).all()) for value, part in enumerate(parts))
    assert all(part.data_ptr() % 64 == 0 for part in parts)
    assert parts[0].untyped_storage().data_ptr() == parts[1].untyped_storage().data_ptr()


def test_threads_that_compute_give_way_at_once_to_whoever_wakes_up() -> None:
    """As the kernel shows it: they ask for its longest slice, from the version on that grants one."""
    if platform.machine() != "x86_64" or tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (
        6,
        12,
    ):
        pytest.skip("this kernel grants no slices")
    kernels_for(torch.float32).close()
    slices: list[int] = []
    call = ctypes.CDLL(None).syscall
    get, set_ = 315, 314  # sched_getattr, sched_setattr

    def compute() -> None:
        attributes = (ctypes.c_uint64 * 6)()  # size and policy, flags, nice and priority, the slice in ns
        size = ctypes.sizeof(attributes)
        assert call(get, 0, attributes, size, 0) == 0
        attributes[3] = 0  # what a thread inherits from one that has made kernels
        assert call(set_, 0, attributes, 0) == 0
        for _ in range(2):
            assert call(get, 0, attributes, size, 0) == 0
            slices.append(attributes[3])
            kernels_for(torch.float32).close()

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert slices[0] < slices[1] == 100_000_000
