"""Experts whose weights stay quantized answer together, and as they do dequantized; recorded steps, too."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import mixture_reference, plain_weight, random_weight
from model_builders import make_engine, run_to_end, write_model
from runtime_builders import make_request
from torch import Tensor

from loadgen.checkpoints import Awq, Gptq, Layout, write_quantized
from stoker_runtime.model import loader
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.weights import SafetensorsSource
from stoker_runtime.model.cuda import check, decoder, experts, support
from stoker_runtime.model.cuda.decoder import CudaDecoder
from stoker_runtime.model.cuda.experts import answer
from stoker_runtime.model.cuda.quantized_experts import multiply_quantized_groups, stacked_mixture
from stoker_runtime.model.cuda.quantized_linear import KernelLinear
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.mlp import Experts, Mlp
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.source import QuantizedSource
from stoker_runtime.model.quantized.stack import QuantizedStack

TOLERANCE = {torch.float32: 2e-5, torch.float16: 8e-3}
FIXED_DEVICE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=10 if "TRITON_INTERPRET" in os.environ else 25,  # interpreted, each takes a second
)


def plain(product: Any) -> Linear:
    """What a quantized product multiplies with, in float64."""
    (weight,) = product.weights
    return Linear(plain_weight(weight))


def make_mixture(
    kind: str,
    sizes: tuple[int, int],
    group_size: int = 32,
    is_shuffled: bool = False,
    activation: Literal["silu", "gelu_tanh"] = "silu",
    counts: tuple[int, int] = (5, 2),
) -> Experts:
    """A mixture of quantized experts, sizes being those of its rows and of its experts."""
    hidden_size, size = sizes
    made = []
    for index in range(counts[0]):
        shapes = ((2 * size, hidden_size), (hidden_size, size))
        first, second = (
            QuantizedLinear((random_weight(kind, *shape, group_size, is_shuffled, seed=2 * index + place),))
            for place, shape in enumerate(shapes)
        )
        made.append(Mlp(first, second, activation))
    return Experts(torch.zeros(counts[0], hidden_size), tuple(made), counts[1], normalizes_weights=True)


def on_device(mixture: Experts, device: torch.device) -> Experts:
    def moved(product: Any) -> QuantizedLinear:
        return QuantizedLinear(tuple(weight.to(device) for weight in product.weights))

    return mixture.mapped(moved)


@FIXED_DEVICE
@given(
    kind=st.sampled_from(["4", "8", "fp8"]),
    sizes=st.sampled_from([(64, 64), (128, 48), (72, 136)]),
    group_size=st.sampled_from([16, 32, 48, 128, 1000]),
    is_shuffled=st.booleans(),
    activation=st.sampled_from(["silu", "gelu_tanh"]),
    counts=st.sampled_from([(1, 1), (5, 2), (24, 3)]),
    num_rows=st.one_of(st.integers(1, 9), st.sampled_from([40, 90])),
    num_padding=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_answers_equal_those_of_dequantized_experts(
    device: torch.device,
    kind: str,
    sizes: tuple[int, int],
    group_size: int,
    is_shuffled: bool,
    activation: Literal["silu", "gelu_tanh"],
    counts: tuple[int, int],
    num_rows: int,
    num_padding: int,
    dtype: torch.dtype,
) -> None:
    mixture = make_mixture(kind, sizes, group_size, is_shuffled, activation, counts)
    stacked = stacked_mixture(on_device(mixture, device))
    assert stacked is not None
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, sizes[0], generator=generator).to(dtype)
    scores = torch.rand(num_rows, counts[0], generator=generator).argsort(dim=-1).to(dtype) / 4
    slots = torch.tensor([0] * (num_rows - num_padding) + [-1] * num_padding, dtype=torch.int32)
    found = answer(stacked, rows.to(device), scores.to(device), slots.to(device)).cpu()
    expected = mixture_reference(mixture.mapped(plain), rows, scores)
    expected[num_rows - num_padding :] = 0
    largest = expected.abs().max().item() + 1e-3
    torch.testing.assert_close(
        found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * largest
    )


@pytest.mark.parametrize("kind", ["4", "8", "fp8"])
def test_stacked_experts_are_views_of_the_stacks(kind: str) -> None:
    mixture = make_mixture(kind, (64, 48), is_shuffled=True)
    stacked = stacked_mixture(mixture)
    assert stacked is not None
    assert stacked.stacks is not None
    for stack, name in zip(stacked.stacks, ("gate_up", "down"), strict=True):
        assert isinstance(stack, QuantizedStack)
        products: list[Any] = [getattr(expert, name) for expert in mixture.experts]
        views: list[Any] = [getattr(expert, name) for expert in stacked.experts]
        assert stack.shape == (5, *products[0].weights[0].shape)
        for product, view in zip(products, views, strict=True):
            assert torch.equal(plain(product).weight, plain(view).weight)
            codes: Tensor = view.weights[0].words if kind != "fp8" else view.weights[0].codes
            assert codes.untyped_storage().data_ptr() == stack.codes.untyped_storage().data_ptr()


def with_other_down(mixture: Experts, down: Any) -> Experts:
    return replace(mixture, experts=(*mixture.experts[:-1], replace(mixture.experts[-1], down=down)))


@pytest.mark.parametrize(
    "down",
    [
        pytest.param(QuantizedLinear((random_weight("4", 64, 48, 16),)), id="group"),
        pytest.param(QuantizedLinear((random_weight("8", 64, 48, 32),)), id="bits"),
        pytest.param(QuantizedLinear((random_weight("4", 64, 48, 32, is_shuffled=True),)), id="order"),
        pytest.param(QuantizedLinear((random_weight("fp8", 64, 48, 32),)), id="kind"),
        pytest.param(QuantizedLinear((random_weight("4", 32, 48, 32),) * 2), id="two"),
        pytest.param(QuantizedLinear((random_weight("4", 64, 48, 32),), torch.ones(64)), id="bias"),
        pytest.param(Linear(torch.zeros(64, 48)), id="plain"),
    ],
)
def test_experts_that_are_not_alike_are_not_stacked(down: Any) -> None:
    mixture = make_mixture("4", (64, 48))
    assert stacked_mixture(mixture) is not None
    assert stacked_mixture(with_other_down(mixture, down)) is None


def test_experts_with_groups_without_a_tile_are_not_stacked() -> None:
    assert stacked_mixture(make_mixture("4", (64, 48), group_size=24)) is None


def test_the_check_at_start_asks_quantized_experts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_model(tmp_path, "mixtral")
    architecture = read_config_json(tmp_path / "config.json")
    assert support.computes_quantized(architecture, torch.float32, device)
    assert check.product_deviation(torch.float16, device, architecture.experts) is None
    monkeypatch.setattr(check, "answer", lambda _mixture, rows, *_: torch.zeros_like(rows))
    assert not support.computes_quantized(architecture, torch.float32, device)
    assert "experts with fp8 differ by" in caplog.text


LAYOUTS: dict[str, Layout | None] = {
    "gptq-shuffled": Gptq(bits=4, group_size=16, shuffle_seed=1),
    "awq": Awq(group_size=16),
    "rounded-to-fp8": None,
}


@pytest.mark.parametrize(
    ("name", "are_together"),
    [
        pytest.param(
            *(name, are_together),
            id=f"{name}-{'together' if are_together else 'one-by-one'}",
            marks=[] if name == "gptq-shuffled" or (name != "awq" and are_together) else [pytest.mark.long],
        )
        for name in LAYOUTS
        for are_together in (True, False)
    ],
)
def test_a_mixture_that_stays_quantized_generates_what_pytorch_does(
    name: str, are_together: bool, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = LAYOUTS[name]
    write_model(tmp_path / "plain", "qwen3-moe")
    folder = tmp_path / "plain"
    if layout is not None:
        folder = tmp_path / "small"
        write_quantized(tmp_path / "plain", folder, layout)
    if not are_together:
        monkeypatch.setattr(decoder, "stacked_mixture", lambda _: None)
    num_calls = 0

    def spy(*args: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        multiply_quantized_groups(*args)

    monkeypatch.setattr(experts, "multiply_quantized_groups", spy)

    def make(kind: type[CudaDecoder] | type[Decoder]) -> CudaDecoder | Decoder:
        architecture = read_config_json(folder / "config.json")
        source: Any = SafetensorsSource(folder)
        if architecture.storage is not None:
            source = QuantizedSource(source, architecture.storage)
        assembly = Assembly(architecture, source, torch.float32, device)
        assembly.keep_quantized(rounds_to_fp8=layout is None)
        with source:
            return kind(architecture, assembly)

    outputs = []
    for kind in (CudaDecoder, Decoder):
        monkeypatch.setattr(loader, "_decoder", lambda *_, kind=kind: make(kind))
        engine = make_engine(folder, device=device.type, num_blocks=32, block_size=8, budget=24)
        runner: Any = engine._runner
        if isinstance(runner.decoder, CudaDecoder):
            runner.decoder.record(runner.cache, [1, 2], [16])
            assert (runner.decoder._recordings is not None) == are_together
            mixtures: list[Any] = [layer.mlp for layer in runner.decoder._loaded]
            products = [expert.down for expert in mixtures[-1].experts]
            assert {type(product) for product in products} == {
                QuantizedLinear if are_together else KernelLinear
            }
        requests = [make_request([5, 80, 3, 9, 120][: 2 + i], max_tokens=3) for i in range(2)]
        outputs.append(list(run_to_end(engine, {0: requests[:1], 1: requests[1:]}).values()))
    assert (num_calls > 0) == are_together
    assert outputs[0] == outputs[1]
