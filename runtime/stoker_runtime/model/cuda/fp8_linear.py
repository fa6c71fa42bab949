"""Products of two fp8 factors on devices that have them: each row is rounded with a scale of its own."""

from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from stoker_runtime.model.cuda.e4m3 import to_e4m3
from stoker_runtime.model.cuda.quantized_linear import KernelLinear
from stoker_runtime.model.fp8 import FP8, FP8_MAX
from stoker_runtime.model.linear import Product
from stoker_runtime.model.quantized.linear import QuantizedLinear
from stoker_runtime.model.quantized.weight import Fp8Weight, fp8_rounded

_MINIMUM_CAPABILITY = (8, 9)  # Ada and Hopper: the first tensor cores that multiply e4m3
_MULTIPLE = 16  # sizes that torch's product takes
_TOLERANCE = 2e-2
_FP8_MAX = tl.constexpr(FP8_MAX)

logger = logging.getLogger(__name__)


@triton.jit
def _round_rows_kernel(rows, codes, scales, size, SIZE_PADDED: tl.constexpr):
    index = tl.arange(0, SIZE_PADDED)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token * size + index, mask=index < size, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(row), axis=0) / _FP8_MAX, 1e-30)
    tl.store(codes + token * size + index, to_e4m3(row / scale), mask=index < size)
    tl.store(scales + token, scale)


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to e4m3, its largest number to 448.

    Shapes:
        rows [T, in], contiguous -> codes [T, in] float8_e4m3fn and scales [T, 1] float32
    """
    num_rows, size = rows.shape
    codes = torch.empty(num_rows, size, dtype=torch.uint8, device=rows.device)
    scales = torch.empty(num_rows, 1, dtype=torch.float32, device=rows.device)
    padded = triton.next_power_of_2(size)
    _round_rows_kernel[(num_rows,)](
        rows, codes, scales, size, SIZE_PADDED=padded, num_warps=min(16, max(1, padded // 512))
    )
    return codes.view(FP8), scales


class Fp8Linear:
    """x @ weight.T + bias, both factors in e4m3. Rows that are not finite stay so and alone.

    Args:
        weight: with a scale for each output, on the device.
        bias: [out], if there is one.
    """

    def __init__(self, weight: Fp8Weight, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias: [T, in] -> [T, out] bfloat16."""
        codes, scales = round_rows(rows.contiguous())
        product = torch._scaled_mm(
            codes,
            self._weight.codes.t(),
            scale_a=scales,
            scale_b=self._weight.scales,
            out_dtype=torch.bfloat16,
        )
        return product if self._bias is None else product.add_(self._bias)


def with_kernels(product: Product, has_fp8_products: bool) -> Product:
    """Return what computes a product with quantized weights here; any other product as it is.

    Args:
        product: of a layer.
        has_fp8_products: see fp8_products_work.
    """
    if not isinstance(product, QuantizedLinear):
        return product
    weight = product.weights[0]
    is_single = len(product.weights) == 1
    if has_fp8_products and is_single and isinstance(weight, Fp8Weight) and _fits(weight):
        return Fp8Linear(weight, product.bias)
    return KernelLinear(product)


def _fits(weight: Fp8Weight) -> bool:
    has_scale_by_output = weight.group_size >= weight.shape[1]
    return (
        weight.rounds_inputs and has_scale_by_output and all(size % _MULTIPLE == 0 for size in weight.shape)
    )


def fp8_products_work(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether products of two fp8 factors exist on a device, beside this dtype, and are right."""
    if dtype != torch.bfloat16 or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _MINIMUM_CAPABILITY and are_right(device)


def are_right(device: torch.device) -> bool:
    """Compare some with plain products; the operator is private to torch, so it may be missing or differ."""
    generator = torch.Generator().manual_seed(0)
    weight = fp8_rounded(torch.randn(96, 64, generator=generator)).to(device)
    plain = torch.empty(weight.shape, device=device)
    weight.dequantize_into(plain)
    try:
        for num_rows in (1, 3, 16, 65):
            rows = torch.randn(num_rows, 64, generator=generator).to(device, torch.bfloat16)
            codes, scales = round_rows(rows)
            expected = (codes.float() * scales) @ plain.T
            found = Fp8Linear(weight, None)(rows).float()
            if not (found - expected).abs().max() <= _TOLERANCE * expected.abs().max():
                logger.warning("fp8 products are wrong on this device: activations stay bfloat16")
                return False
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        logger.info("activations stay bfloat16 beside fp8 weights: %s", error)
        return False
    return True
