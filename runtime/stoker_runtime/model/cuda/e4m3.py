"""float8_e4m3fn in kernels, by its bits: the same on every device, those without such numbers included."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def from_e4m3(codes, DTYPE: tl.constexpr):
    """Return the numbers that bytes stand for, exactly.

    Shifted left by seven bits, exponent and fraction are those of a float16 that is 2^8 too small, and that
    goes for its subnormal numbers as well.
    """
    bits = codes.to(tl.int16)
    half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    value = half.to(tl.float16, bitcast=True) * 256.0
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), value).to(DTYPE)


@triton.jit
def to_e4m3(values):
    """Return the bytes of the nearest numbers, ties to even; what is larger than 448 becomes 448."""
    value = values.to(tl.float32)
    is_number = value == value
    size = tl.where(is_number, tl.minimum(tl.abs(value), 448.0), 0.0)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the steps are 2^-9; adding 2^23 leaves no bits for fractions of them.
    subnormal = ((size * 512.0 + 8388608.0) - 8388608.0).to(tl.int32)
    code = tl.where(size < 0.015625, subnormal, normal)
    sign = (value.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (tl.where(is_number, code, 0x7F) | sign).to(tl.uint8)
