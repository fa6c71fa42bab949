"""Products with quantized weights whose inputs are cut into parts, to keep a large device busy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import assert_products_close, plain_weight, random_weight
from torch import Tensor

from stoker_runtime.model.cuda import quantized_linear
from stoker_runtime.model.cuda.quantized_linear import KernelLinear, multiply, num_parts, tile_inputs
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.weight import QuantizedWeight

FIXED_DEVICE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)

weights = st.builds(
    random_weight,
    st.sampled_from(["4", "8", "fp8"]),
    st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 130])),
    st.integers(1, 20).map(lambda n: 8 * n),
    st.sampled_from([16, 32, 48, 64, 128, 1000]),
)


@FIXED_DEVICE
@given(
    weight=weights,
    num_rows=st.sampled_from([1, 5, 17, 64]),
    parts=st.integers(2, 8),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_products_in_parts_equal_the_reference(
    device: torch.device, weight: QuantizedWeight, num_rows: int, parts: int, dtype: torch.dtype
) -> None:
    """More parts than there are tiles of inputs, too: those that begin behind the last one add zeros."""
    size = tile_inputs(weight.group_size, weight.shape[1])
    assert size is not None
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, weight.shape[1], generator=generator).to(dtype)
    found = multiply(rows.to(device), weight.to(device), size, parts)
    assert_products_close(found.cpu(), rows.double() @ plain_weight(weight).T)
    assert torch.equal(found, multiply(rows.to(device), weight.to(device), size, parts))


@pytest.mark.parametrize(
    ("shape", "num_processors", "expected"),
    [
        pytest.param((4096, 4096), 132, 2, id="half-idle"),
        pytest.param((4096, 14336), 132, 2, id="half-idle-and-deep"),
        pytest.param((6144, 4096), 132, 1, id="busy-enough"),
        pytest.param((28672, 4096), 132, 1, id="many-tiles"),
        pytest.param((1024, 4096), 132, 4, id="parts-are-large-enough"),
        pytest.param((64, 65536), 132, 8, id="most-parts"),
        pytest.param((64, 1000), 132, 1, id="too-shallow"),
        pytest.param((1, 1), 1, 1, id="smallest"),
    ],
)
def test_inputs_are_cut_where_a_product_leaves_most_of_a_device_idle(
    shape: tuple[int, int], num_processors: int, expected: int
) -> None:
    assert num_parts(*shape, num_processors) == expected


def test_a_product_is_cut_into_parts_where_the_device_is_large(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_linear, "_num_processors", lambda _: 132)
    cut = list[int]()

    def spy(rows: Tensor, weight: QuantizedWeight, size: int, parts: int) -> Tensor:
        cut.append(parts)
        return multiply(rows, weight, size, parts)

    monkeypatch.setattr(quantized_linear, "multiply", spy)
    weight = random_weight("4", 32, 2048, 128)
    rows = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))
    found = KernelLinear(QuantizedLinear((weight.to(device),)))(rows.to(device))
    assert cut == [2]
    assert_products_close(found.cpu(), rows.double() @ plain_weight(weight).T)
