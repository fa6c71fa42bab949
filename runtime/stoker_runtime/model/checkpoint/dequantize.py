"""GGML's quantized blocks back to float32, vectorised over blocks.

The `gguf` package has numpy code for every type, which the tests compare with bit for bit. PyTorch's
operators read the types that most files have: they use every core and fewer passes, which start-up feels.

Source: block layouts of ggml's ggml-common.h (block_q4_0, block_q4_1, block_q8_0, block_q4_K, block_q6_K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How one GGML type stores values.

    Args:
        name: GGML's name of the type.
        num_values: values in one block.
        num_bytes: bytes of one block.
        decode: blocks as bytes [n, num_bytes] -> float32 [n, num_values].
        is_serial: decode uses one core; several threads may call it at once.
    """

    name: str
    num_values: int
    num_bytes: int
    decode: Callable[[Tensor], Tensor]
    is_serial: bool = False


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, [n, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.view(dtype).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Low nibbles, then high nibbles: [..., n] -> [..., 2n]."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_k(blocks: Tensor) -> Tensor:
    """8 sub-blocks of 32; their 6-bit scales and minimums share 12 bytes."""
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (mixed & 15) | (low >> 6 << 4)], dim=-1).float()  # [n, 8]
    minimums = torch.cat([high & 63, (mixed >> 4) | (high >> 6 << 4)], dim=-1).float()
    values = _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32).float()
    scaled = values * (_half(blocks, 0) * scales).unsqueeze(-1)
    return (scaled - (_half(blocks, 2) * minimums).unsqueeze(-1)).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    """Two halves of 128: low 4 bits in 64 bytes, high 2 bits in 32, a scale for each 16 values."""
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    high = blocks[:, 128:192].view(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    values = (low | ((high >> shifts & 3) << 4)).float() - 32
    scales = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)  # [n, 16]
    return (values.view(-1, 16, 16) * scales.unsqueeze(-1)).view(-1, 256)


FORMATS = {
    0: BlockFormat("F32", 1, 4, _plain(torch.float32)),
    1: BlockFormat("F16", 1, 2, _plain(torch.float16)),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
    28: BlockFormat("F64", 1, 8, _plain(torch.float64)),
    30: BlockFormat("BF16", 1, 2, _plain(torch.bfloat16)),
}
# GGML's numbers that the `gguf` package does not know: types that llama.cpp has given up.
_GIVEN_UP = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


def block_format(type_id: int) -> BlockFormat | None:
    """Return how a GGML type stores values; None for one that nothing here can read."""
    return FORMATS.get(type_id) or _other_format(type_id)


def type_name(type_id: int) -> str:
    """Return GGML's name of a type, or its number where it has none."""
    if type_id in FORMATS:
        return FORMATS[type_id].name
    import gguf

    try:
        return gguf.GGMLQuantizationType(type_id).name  # type: ignore[no-any-return]
    except ValueError:
        return _GIVEN_UP.get(type_id, f"of GGML's type {type_id}")


@cache
def _other_format(type_id: int) -> BlockFormat | None:
    """A type that the `gguf` package alone reads; its import, a fifth of a second, is not for other files."""
    import gguf
    import numpy as np

    try:
        kind = gguf.GGMLQuantizationType(type_id)
        num_values, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, num_bytes), dtype=np.uint8), kind)
    except (ValueError, NotImplementedError):
        return None

    def decode(blocks: Tensor) -> Tensor:
        # as one row: the package does with 16 rows at a time what it does
        row = np.ascontiguousarray(blocks.numpy()).reshape(1, -1)
        return torch.from_numpy(gguf.dequantize(row, kind)).view(-1, num_values)

    return BlockFormat(kind.name, num_values, num_bytes, decode, is_serial=True)
