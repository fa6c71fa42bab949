"""Norms, rotations with their KV writes, and activations equal PyTorch's operators in double precision."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_references import add_and_norm_reference, rotate_reference
from torch import Tensor

from stoker_runtime.model.cuda.activation import gate_and_multiply
from stoker_runtime.model.cuda.norms import add_and_norm
from stoker_runtime.model.cuda.rotate import Rotation, rotate_and_store
from stoker_runtime.model.cuda.shapes import Heads
from stoker_runtime.model.fp8 import FP8, to_fp8

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EPS = 1e-5
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
FIXED_DEVICE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


class Random:
    """Normal numbers from a seed."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self._device = dtype, device

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self._device, self._dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@FIXED_DEVICE
@given(
    num_rows=st.integers(1, 5),
    size=st.one_of(st.integers(1, 200), st.sampled_from([255, 256, 257, 1536])),
    dtype=dtypes,
    has_delta=st.booleans(),
    has_delta_norm=st.booleans(),
    has_norm=st.booleans(),
    alpha=st.sampled_from([1.0, 0.22]),
)
def test_add_and_norm_equals_the_reference(
    device: torch.device,
    num_rows: int,
    size: int,
    dtype: torch.dtype,
    has_delta: bool,
    has_delta_norm: bool,
    has_norm: bool,
    alpha: float,
) -> None:
    random = Random(size, dtype, device)
    hidden, out = random(num_rows, size), random(num_rows, size)
    delta = random(num_rows, size) if has_delta else None
    delta_weight = random(size) if has_delta and has_delta_norm else None
    weight = random(size) if has_norm else None
    expected = add_and_norm_reference(hidden, delta, delta_weight, weight, EPS, alpha)
    normed = add_and_norm(hidden, delta, delta_weight, weight, EPS, alpha, out)
    assert_close(hidden, expected[0])
    assert_close(normed, expected[1])


def test_norms_take_weights_in_float32_beside_rows_of_half_precision(device: torch.device) -> None:
    """As Gemma's are: 1.0038 would be 1 in bfloat16, which shows in the mean over many numbers."""
    random, heads = Random(0, torch.bfloat16, device), Heads(4, 2, 32)
    rows, projected = random(40, 512), random(40, 8 * 32)
    positions = torch.arange(40, dtype=torch.int32, device=device)

    def results(factor: float) -> list[Tensor]:
        weight = torch.full((512,), factor, device=device)
        normed = add_and_norm(rows.clone(), None, None, weight, EPS, 1.0, torch.empty_like(rows))
        summed = add_and_norm(torch.zeros_like(rows), rows, weight, None, EPS, 1.0, rows)
        rotation = Rotation(None, None, weight[: 6 * 32].view(6, 32), norms_projections=False)
        cache, query = (random(40, 2, 32), random(40, 2, 32)), random(40, 4 * 32)
        rotate_and_store(projected, rotation, positions, positions, cache, heads, EPS, query)
        return [normed.double(), summed.double(), query.double(), cache[0].double()]

    for found, plain in zip(results(1.0038), results(1.0), strict=True):
        slope = (found * plain).sum() / (plain * plain).sum()
        assert abs(slope - 1.0038) < 5e-4


@FIXED_DEVICE
@given(
    num_rows=st.integers(1, 4),
    size=st.one_of(st.integers(1, 100), st.sampled_from([1023, 1024, 1025, 2100])),
    dtype=dtypes,
    activation=st.sampled_from(["silu", "gelu_tanh"]),
)
def test_activations_equal_the_reference(
    device: torch.device,
    num_rows: int,
    size: int,
    dtype: torch.dtype,
    activation: Literal["silu", "gelu_tanh"],
) -> None:
    random = Random(size, dtype, device)
    gate_up, out = 3 * random(num_rows, 2 * size), random(num_rows, size)
    gate_and_multiply(gate_up, activation, out)
    gate, up = gate_up.double().chunk(2, dim=-1)
    activated = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    assert_close(out, activated * up)


@FIXED_DEVICE
@given(
    heads=st.builds(
        lambda group, num_kv_heads, head_dim: Heads(group * num_kv_heads, num_kv_heads, head_dim),
        st.integers(1, 8),
        st.integers(1, 5),
        st.sampled_from([32, 64, 80, 128]),
    ),
    rotary=st.sampled_from([None, 0.25, 0.5, 1.0]),
    norm=st.sampled_from([None, "head", "projection"]),
    slots=st.lists(st.integers(0, 19), min_size=1, max_size=4, unique=True),
    num_padding=st.integers(0, 2),
    dtype=dtypes,
    is_fp8=st.booleans(),
)
def test_rotate_and_store_equals_the_reference(
    device: torch.device,
    heads: Heads,
    rotary: float | None,
    norm: str | None,
    slots: list[int],
    num_padding: int,
    dtype: torch.dtype,
    is_fp8: bool,
) -> None:
    random = Random(heads.num_heads, dtype, device)
    num_rows, num_turned = len(slots) + num_padding, heads.num_heads + heads.num_kv_heads
    rotation = Rotation(
        cosines=None if rotary is None else random(50, int(rotary * heads.head_dim)),
        sines=None if rotary is None else random(50, int(rotary * heads.head_dim)),
        norm_weight=None if norm is None else random(num_turned, heads.head_dim),
        norms_projections=norm == "projection",
    )
    qkv = random(num_rows, (num_turned + heads.num_kv_heads) * heads.head_dim)
    kv_dtype = FP8 if is_fp8 else dtype
    keys, values = (random(20, heads.num_kv_heads, heads.head_dim).to(kv_dtype) for _ in range(2))
    positions = torch.arange(num_rows, dtype=torch.int32, device=device) * 7
    slot_tensor = torch.tensor([*slots, *[-1] * num_padding], dtype=torch.int32, device=device)
    expected = rotate_reference(qkv, rotation, positions, heads, EPS)
    expected_keys, expected_values = keys.double(), values.double()
    expected_keys[slots], expected_values[slots] = (part[: len(slots)] for part in expected[1:])

    query = random(num_rows, heads.num_heads * heads.head_dim)
    rotate_and_store(qkv, rotation, positions, slot_tensor, (keys, values), heads, EPS, query)
    assert_close(query, expected[0].flatten(1))
    if not is_fp8:
        assert_close(keys, expected_keys)
        assert_close(values, expected_values)
        return
    assert torch.equal(values.double(), to_fp8(expected_values.float()).double())
    # A rotation's rounding may tip a key over to the neighbour, one step in eight away or 2^-9 near zero.
    torch.testing.assert_close(keys.double(), expected_keys, rtol=0.07, atol=2**-9)
