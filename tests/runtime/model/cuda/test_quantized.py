"""Kernels over quantized weights equal PyTorch's operators, in every shape and grouping that may occur."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import assert_products_close, plain_weight, random_weight
from model_builders import Reference, make_engine, run_to_end, write_model
from runtime_builders import make_request
from torch import Tensor

from loadgen.checkpoints import Awq, Fp8, Gptq, Layout, write_quantized
from stoker_runtime.config import EngineConfig
from stoker_runtime.errors import ConfigError
from stoker_runtime.model import loader
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.cuda import check, fp8_linear, quantized_linear, support
from stoker_runtime.model.cuda.decoder import CudaDecoder
from stoker_runtime.model.cuda.e4m3 import from_e4m3, to_e4m3
from stoker_runtime.model.cuda.fp8_linear import Fp8Linear, are_right, round_rows, with_kernels
from stoker_runtime.model.cuda.quantized_linear import MANY_ROWS, KernelLinear, dequantized, tile_inputs
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.fp8 import FP8, FP8_MAX
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.source import QuantizedSource
from stoker_runtime.model.quantized.weight import (
    IntWeight,
    QuantizedWeight,
    fp8_rounded,
)

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
IS_INTERPRETED = "TRITON_INTERPRET" in os.environ
# The interpreter multiplies and rounds bfloat16 wrongly.
dtypes = st.sampled_from(FLOATS[:2] if IS_INTERPRETED else FLOATS)
FIXED_DEVICE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


weights = st.builds(
    random_weight,
    st.sampled_from(["4", "8", "fp8"]),
    st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 130])),
    st.integers(1, 20).map(lambda n: 8 * n),
    # tiles of 16, 32 and 64 inputs, groups too odd for any, and one group for all
    st.sampled_from([16, 32, 48, 64, 128, 20, 7, 1000]),
    st.booleans(),
)


@FIXED_DEVICE
@given(
    weight=weights,
    num_rows=st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 70])),
    has_bias=st.booleans(),
    dtype=dtypes,
)
def test_products_equal_the_reference(
    device: torch.device, weight: QuantizedWeight, num_rows: int, has_bias: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, weight.shape[1], generator=generator).to(dtype)
    bias = torch.randn(weight.shape[0], generator=generator).to(dtype) if has_bias else None
    expected = rows.double() @ plain_weight(weight).T
    expected = expected if bias is None else expected + bias.double()
    on_device = QuantizedLinear((weight.to(device),), None if bias is None else bias.to(device))
    assert_products_close(KernelLinear(on_device)(rows.to(device)).cpu(), expected)
    assert_products_close(on_device(rows.to(device)).cpu(), expected)


@FIXED_DEVICE
@given(weight=weights, dtype=dtypes)
def test_dequantized_weights_equal_the_reference(
    device: torch.device, weight: QuantizedWeight, dtype: torch.dtype
) -> None:
    found = dequantized(weight.to(device), dtype).cpu()
    if isinstance(weight, IntWeight) and weight.order is not None:
        found = found[:, torch.argsort(weight.order)]
    assert torch.equal(found, plain_weight(weight).float().to(dtype))


def test_weights_side_by_side_read_the_same_rows(device: torch.device) -> None:
    parts = [random_weight(kind, 24, 64, 32, is_shuffled=True).to(device) for kind in ("4", "8", "fp8")]
    bias = torch.arange(72.0, device=device)
    linear = QuantizedLinear(tuple(parts), bias)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(device)
    expected = torch.cat(
        [rows.cpu().double() @ plain_weight(part.to(torch.device("cpu"))).T for part in parts], dim=1
    )
    assert_products_close(KernelLinear(linear)(rows).cpu(), expected + bias.cpu().double())


@pytest.mark.parametrize("num_rows", [MANY_ROWS - 1, MANY_ROWS])
def test_few_rows_read_the_codes_and_many_a_weight_made_for_them(
    num_rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[torch.dtype]()

    def spy(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        made.append(dtype)
        return dequantized(weight, dtype)

    monkeypatch.setattr(quantized_linear, "dequantized", spy)
    linear = KernelLinear(QuantizedLinear((random_weight("4", 8, 32, 32).to(device),)))
    linear(torch.zeros(num_rows, 32, device=device))
    assert bool(made) is (num_rows >= MANY_ROWS)


def test_tiles_stay_within_a_group() -> None:
    found = {size: tile_inputs(size, 160) for size in (16, 96, 128, 160, 200, 24)}
    assert found == {16: 16, 96: 32, 128: 64, 160: 64, 200: 64, 24: None}


@triton.jit  # type: ignore[untyped-decorator]
def _both_ways_kernel(codes, numbers, decoded, encoded, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    where = tl.arange(0, SIZE)
    number = tl.load(numbers + where)
    tl.store(decoded + where, from_e4m3(tl.load(codes + where), number.dtype))
    tl.store(encoded + where, to_e4m3(number))


@FIXED_DEVICE
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(FLOATS))
def test_bytes_and_numbers_are_those_of_torch(device: torch.device, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.arange(256, dtype=torch.uint8)
    every = codes.view(FP8).float()
    numbers = torch.cat(
        [every, torch.randn(248, generator=generator) * 2.0 ** torch.randint(-12, 12, (248,))]
    )
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 449.0, 2.0**-10, 3 * 2.0**-10]
    )
    numbers = torch.cat([numbers, special]).to(dtype)
    decoded, encoded = (
        torch.empty(512, dtype=dtype, device=device),
        torch.empty(512, dtype=torch.uint8, device=device),
    )
    _both_ways_kernel[(1,)](codes.repeat(2).to(device), numbers.to(device), decoded, encoded, SIZE=512)
    torch.testing.assert_close(decoded.cpu()[:256], every.to(dtype), rtol=0, atol=0, equal_nan=True)
    expected = numbers.float().clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
    torch.testing.assert_close(encoded.cpu().view(FP8).float(), expected, rtol=0, atol=0, equal_nan=True)


@FIXED_DEVICE
@given(
    num_rows=st.integers(1, 5),
    size=st.integers(1, 130),
    dtype=st.sampled_from(FLOATS),
)
def test_rows_are_rounded_with_a_scale_of_their_own(
    device: torch.device, num_rows: int, size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(size)
    rows = (torch.randn(num_rows, size, generator=generator) * 10).to(dtype)
    rows[0] = 0
    codes, scales = round_rows(rows.to(device))
    found = codes.cpu().float() * scales.cpu()
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    assert bool(((found - rows.float()).abs() <= rows.float().abs() / 16 + largest / 448 * 2**-9).all())


def test_rows_that_are_not_finite_stay_so_and_alone(device: torch.device) -> None:
    rows = torch.ones(4, 32, device=device)
    rows[1, 3], rows[2, 5] = float("nan"), float("inf")
    with np.errstate(invalid="ignore"):  # infinity over infinity, in the interpreter
        codes, scales = round_rows(rows)
    finite = (codes.float() * scales).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, False, True]


def test_products_of_two_fp8_factors_are_checked_before_they_are_used(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert are_right(device)
    monkeypatch.setattr(Fp8Linear, "__call__", lambda *_: torch.zeros(1, 96, device=device))
    assert not are_right(device)
    assert "fp8 products are wrong" in caplog.text

    def missing(*_: object) -> Tensor:
        raise RuntimeError("not for this device")

    monkeypatch.setattr(Fp8Linear, "__call__", missing)
    assert not are_right(device)


def test_which_products_round_activations(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = fp8_rounded(torch.randn(32, 48))
    assert isinstance(with_kernels(QuantizedLinear((weight,)), True), Fp8Linear)
    assert isinstance(with_kernels(QuantizedLinear((weight,)), False), KernelLinear)
    for other in (
        fp8_rounded(torch.randn(33, 48)),
        replace(weight, rounds_inputs=False),
        random_weight("fp8", 32, 48, 16),
        random_weight("4", 8, 8, 8),
    ):
        assert isinstance(with_kernels(QuantizedLinear((other,)), True), KernelLinear)
    both = QuantizedLinear((weight, random_weight("4", 8, 48, 16)))
    assert isinstance(with_kernels(both, True), KernelLinear)
    untouched = Linear(torch.zeros(2, 2))
    assert with_kernels(untouched, True) is untouched
    assert not fp8_linear.fp8_products_work(torch.float16, device)
    cuda = torch.device("cuda")
    for capability, expected in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        monkeypatch.setattr(fp8_linear, "are_right", lambda _: True)
        assert fp8_linear.fp8_products_work(torch.bfloat16, cuda) is expected


def test_the_check_at_start_passes(device: torch.device) -> None:
    assert check.product_deviation(torch.float32, device, None) is None
    assert check.product_deviation(torch.float16, device, None) is None


def test_kernels_that_compute_wrongly_are_not_used(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, "llama")
    architecture = read_config_json(tmp_path / "config.json")
    assert support.computes_quantized(architecture, torch.float32, device)
    monkeypatch.setattr(KernelLinear, "__call__", lambda *_: torch.zeros(1, 72, device=device))
    assert not support.computes_quantized(architecture, torch.float32, device)
    assert "products with fp8 differ" in caplog.text


LAYOUTS: dict[str, Layout | None] = {
    "gptq": Gptq(group_size=32),
    "gptq-shuffled": Gptq(bits=8, group_size=16, shuffle_seed=1),
    "awq": Awq(group_size=16),
    "fp8-block": Fp8("block", (32, 32)),
    "rounded-to-fp8": None,
}


def kept_assembly(
    folder: Path, device: torch.device, rounds_to_fp8: bool
) -> tuple[Architecture, Any, Assembly]:
    architecture = read_config_json(folder / "config.json")
    files = SafetensorsSource(folder)
    source: Any = files if architecture.storage is None else QuantizedSource(files, architecture.storage)
    assembly = Assembly(architecture, source, torch.float32, device)
    assembly.keep_quantized(rounds_to_fp8)
    return architecture, source, assembly


@pytest.mark.parametrize(
    ("layout", "family"), [*zip(LAYOUTS.values(), cycle(["llama", "qwen2"]), strict=False)], ids=LAYOUTS
)
def test_a_model_over_the_kernels_generates_what_its_dequantized_weights_do(
    layout: Layout | None, family: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "plain", family)
    folder = tmp_path / "plain"
    if layout is not None:
        folder = tmp_path / "small"
        write_quantized(tmp_path / "plain", folder, layout)
    for name, weight in model.named_parameters():
        if not name.endswith("_proj.weight"):
            continue
        if layout is None:
            fp8_rounded(weight.detach()).dequantize_into(weight.detach())
        else:
            architecture = read_config_json(folder / "config.json")
            assert architecture.storage is not None
            with QuantizedSource(SafetensorsSource(folder), architecture.storage) as source:
                source.copy_into(name, weight.detach())
    kept = list[bool]()

    def decoder(_: EngineConfig, architecture: Architecture, assembly: Assembly) -> CudaDecoder:
        assembly.keep_quantized(rounds_to_fp8=layout is None)
        found = CudaDecoder(architecture, assembly)
        products = [(layer.qkv, layer.output, layer.mlp) for layer in found._loaded]
        kept.extend(isinstance(product, KernelLinear) for product in products[0][:2])
        return found

    monkeypatch.setattr(loader, "_decoder", decoder)
    monkeypatch.setattr(loader, "buckets", lambda _: [])
    engine = make_engine(folder, device=device.type, num_blocks=32, block_size=8, budget=24)
    assert kept == [True, True]
    requests = [make_request([5, 80, 3, 9, 120][: 2 + i], max_tokens=2) for i in range(2)]
    outputs = run_to_end(engine, {0: requests[:1], 1: requests[1:]})
    for request in requests:
        assert Reference(model).num_near_ties(request.prompt_token_ids, outputs[request.request_id]) == 0


def test_weights_that_stay_quantized_take_less_memory(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", Gptq(group_size=32))
    cpu = torch.device("cpu")
    sizes = []
    for folder, rounds in (
        (tmp_path / "plain", False),
        (tmp_path / "plain", True),
        (tmp_path / "small", False),
    ):
        architecture, source, assembly = kept_assembly(folder, cpu, rounds)
        with source:
            sizes.append(Decoder(architecture, assembly).num_bytes)
    elements = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64)
    assert sizes[0] - sizes[1] == elements * 3 - 2 * 4 * (128 + 64 + 2 * 96 + 64)
    assert 0.15 * elements < elements * 4 - (sizes[0] - sizes[2]) < 0.75 * elements


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_fp8_that_cannot_be_had_is_refused(
    device_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "plain", "llama")
    config = EngineConfig(model=str(tmp_path / "plain"), device="cpu", dtype="float32", quantization="fp8")
    if device_type == "cpu":
        with pytest.raises(ConfigError, match=r"--quantization is fp8.*CUDA device; use none, or int8"):
            loader.load_runner(config)
        return
    architecture, _, assembly = kept_assembly(tmp_path / "plain", torch.device("cuda"), rounds_to_fp8=False)
    monkeypatch.setattr(loader, "is_usable", lambda *_: True)
    monkeypatch.setattr(loader, "computes_quantized", lambda *_: False)
    with pytest.raises(ConfigError, match=r"--quantization is fp8.*Triton"):
        loader._decoder(config, architecture, assembly)


def test_fp8_of_weights_that_are_quantized_already_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", "llama")
    write_quantized(tmp_path / "plain", tmp_path / "small", Awq(group_size=16))
    with pytest.raises(ConfigError, match=r"--quantization is fp8.*quantized already"):
        make_engine(tmp_path / "small", quantization="fp8")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_loader_keeps_weights_quantized_on_a_cuda_device(layout: Layout | None, tmp_path: Path) -> None:
    write_model(tmp_path / "plain", "llama")
    folder = tmp_path / "plain"
    if layout is not None:
        folder = tmp_path / "small"
        write_quantized(tmp_path / "plain", folder, layout)
    engine = make_engine(folder, device="cuda", quantization="none" if layout else "fp8")
    decoder: Any = engine._runner.decoder  # type: ignore[attr-defined]
    assert isinstance(decoder, CudaDecoder)
    assert isinstance(decoder._loaded[0].qkv, KernelLinear)
    request = make_request([5, 80, 3], max_tokens=8)
    assert len(run_to_end(engine, {0: [request]})[request.request_id]) == 8
