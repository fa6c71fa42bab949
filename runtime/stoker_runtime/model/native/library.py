"""Finds the library, makes sure that it is the one this code was written for, and calls it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import weakref
from ctypes import POINTER, Array, byref, c_char, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.errors import ConfigError
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES, BlockLinear
from stoker_runtime.model.linear import Linear
from stoker_runtime.model.native import structs

PATH = Path(__file__).parent / "libstoker_cpu.so"
GROUP = 32  # inputs that share a scale in a quantized weight: kGroup of csrc/quantized.h
PANEL = 32  # outputs that lie side by side in a packed weight: kPanel of csrc/product.h
_LINE_BYTES = 64
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_SUPPORTED_BIT = {torch.float32: 1, torch.bfloat16: 2}
_PREFIX = {torch.float32: "stoker_f32", torch.bfloat16: "stoker_bf16"}

logger = logging.getLogger(__name__)


@cache
def find_library() -> ctypes.CDLL | None:
    """Load the library; None, and a line in the log, where there is none or it is not this version's."""
    if not PATH.exists():
        logger.info("no %s: steps are computed by PyTorch's operators", PATH.name)
        return None
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:  # another machine's, or damaged
        logger.warning("%s cannot be loaded, steps are computed by PyTorch's operators: %s", PATH.name, error)
        return None
    _declare(library)
    sizes = (c_int32 * len(structs.ALL))()
    library.stoker_struct_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(struct) for struct in structs.ALL]:
        logger.warning("%s is of another version, steps are computed by PyTorch's operators", PATH.name)
        return None
    return library


def _declare(library: ctypes.CDLL) -> None:
    library.stoker_supported.restype = c_int32
    library.stoker_create.restype = c_void_p
    library.stoker_create.argtypes = [c_int32]
    library.stoker_destroy.argtypes = [c_void_p]
    library.stoker_packed_bytes.restype = c_int64
    library.stoker_packed_bytes.argtypes = [c_int64, c_int64, c_int32, c_int32]
    library.stoker_quantized_bytes.restype = c_int64
    library.stoker_quantized_bytes.argtypes = [c_int64, c_int64, c_int32]
    library.stoker_bf16_pack_quantized.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_void_p]
    library.stoker_bf16_pack_quantized.restype = None
    library.stoker_bf16_blocks_bytes.argtypes = [c_int32, c_int64, c_int64, c_int32]
    library.stoker_bf16_blocks_bytes.restype = c_int64
    library.stoker_bf16_pack_blocks.argtypes = [c_int32, c_void_p, c_int64, c_int64, c_int32, c_void_p]
    library.stoker_bf16_pack_blocks.restype = None
    library.stoker_finite.argtypes = [c_void_p, c_void_p, c_int32, c_int64, c_void_p]
    library.stoker_finite.restype = None
    library.stoker_pick.argtypes = [c_void_p, c_void_p, c_int32, c_int64, c_void_p, c_void_p]
    library.stoker_pick.restype = c_int32
    for prefix in _PREFIX.values():
        names = ("pack", "linear", "step", "dequantize")
        pack, linear, step, dequantize = (getattr(library, f"{prefix}_{name}") for name in names)
        dequantize.argtypes = [c_int32, c_void_p, c_int64, c_void_p]
        dequantize.restype = c_int32
        pack.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_void_p]
        linear.argtypes = [c_void_p, POINTER(structs.Linear), c_void_p, c_int32, c_void_p]
        step.argtypes = [
            c_void_p,
            POINTER(structs.Model),
            POINTER(structs.Step),
            POINTER(structs.Cache),
            c_void_p,
        ]
        step.restype = c_int32
        for function in (pack, linear):
            function.restype = None


class Kernels:
    """The library for one dtype, with threads of its own.

    Args:
        library: a checked library.
        dtype: of weights, activations and KV cache; the CPU computes in it.
        num_threads: that compute a step, the caller's included. They end with this object.

    Raises:
        ConfigError: so many threads cannot be started.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, num_threads: int) -> None:
        self.dtype = dtype
        self._library = library
        prefix = _PREFIX[dtype]
        self._pack, self._linear, self._step = (
            getattr(library, f"{prefix}_{name}") for name in ("pack", "linear", "step")
        )
        self._memory = HugePages()
        self._context: Any = library.stoker_create(num_threads)
        if self._context is None:
            raise ConfigError(
                f"{num_threads} compute threads cannot be started; lower --num-threads, or raise the limit "
                "on processes (a pod's pids limit)"
            )
        self._end = weakref.finalize(self, library.stoker_destroy, self._context)
        self._end.atexit = False  # they end with the process, which may be in the middle of a step

    def close(self) -> None:
        """End the threads."""
        self._end()
        self._context = None

    def packed(
        self, linear: Linear, is_pair: bool = False, is_quantized: bool = False
    ) -> tuple[structs.Linear, tuple[Tensor, ...]]:
        """Pack a weight.

        Args:
            linear: the product; its number of inputs is even.
            is_pair: the weight is a gate's and an up projection's, one below the other.
            is_quantized: to 8 bits, beside bfloat16; the number of inputs is a multiple of GROUP.

        Returns:
            The struct, and the tensors that it points to.
        """
        num_outputs, num_inputs = linear.weight.shape
        shape = (num_outputs, num_inputs)
        if is_quantized:
            weight = linear.weight.float().contiguous()
            memory = self._memory.take(self._library.stoker_quantized_bytes(*shape, is_pair))
            self._library.stoker_bf16_pack_quantized(weight.data_ptr(), *shape, is_pair, memory.data_ptr())
        else:
            weight = linear.weight.contiguous()
            size = self._library.stoker_packed_bytes(*shape, self.dtype.itemsize, is_pair)
            memory = self._memory.take(size)
            self._pack(weight.data_ptr(), *shape, is_pair, memory.data_ptr())
        bias = linear.bias
        address = None if bias is None else bias.data_ptr()
        struct = structs.Linear(memory.data_ptr(), address, num_inputs, num_outputs, is_quantized)
        return struct, (memory,) if bias is None else (memory, bias)

    def packed_blocks(
        self, linear: BlockLinear, is_pair: bool = False
    ) -> tuple[structs.Linear, tuple[object, ...]]:
        """Pack a weight that keeps its blocks; beside bfloat16 alone.

        Args:
            linear: one that `fits_panels`, joined.
            is_pair: see packed.

        Returns:
            The struct, and what it points to.
        """
        parts = (structs.Part * len(linear.parts))()
        kept: list[object] = [parts]
        num_outputs = 0
        for struct, part in zip(parts, linear.parts, strict=True):
            blocks, shape = part.blocks.contiguous(), part.shape
            memory = self._memory.take(self._library.stoker_bf16_blocks_bytes(part.type_id, *shape, is_pair))
            self._library.stoker_bf16_pack_blocks(
                part.type_id, blocks.data_ptr(), *shape, is_pair, memory.data_ptr()
            )
            struct.packed, struct.type = memory.data_ptr(), part.type_id
            struct.first_panel = num_outputs // PANEL
            num_outputs += shape[0]
            kept.append(memory)
        address = None if linear.bias is None else linear.bias.data_ptr()
        where = ctypes.addressof(parts)
        num_inputs = linear.parts[0].shape[1]
        return (
            structs.Linear(None, address, num_inputs, num_outputs, True, len(parts), where),
            (*kept, linear.bias),
        )

    def product(self, linear: structs.Linear, rows: Tensor) -> Tensor:
        """Return rows @ weight.T + bias: [T, in] -> [T, out]."""
        out = torch.empty(rows.shape[0], linear.num_outputs, dtype=self.dtype)
        self._linear(self._context, byref(linear), rows.data_ptr(), rows.shape[0], out.data_ptr())
        return out

    def step(self, model: structs.Model, step: structs.Step, kv_cache: structs.Cache, logits: Tensor) -> None:
        """Compute a step; logits [sampled rows, V] float32 are overwritten.

        Raises:
            MemoryError: nothing was computed.
        """
        if not self._step(self._context, byref(model), byref(step), byref(kv_cache), logits.data_ptr()):
            raise MemoryError(f"memory for a step of {step.num_tokens} tokens")

    def are_finite(self, logits: Tensor) -> list[bool]:
        """Tell of each row whether all its values are finite: [B, V] float32."""
        found = bytearray(len(logits))
        where = (c_char * len(found)).from_buffer(found)
        self._library.stoker_finite(self._context, logits.data_ptr(), *logits.shape, byref(where))
        return [value == 1 for value in found]

    def pick(self, logits: Tensor, picks: Array[structs.Pick]) -> list[int]:
        """Return a token for each row of logits [B, V] float32, -1 where the largest one is not finite.

        Raises:
            MemoryError: there is too little for the likeliest tokens of some row.
        """
        token_ids = (c_int32 * len(picks))()
        if not self._library.stoker_pick(
            self._context, logits.data_ptr(), *logits.shape, byref(picks), byref(token_ids)
        ):
            raise MemoryError(f"memory to pick {len(picks)} tokens")
        return list(token_ids)


def fits_panels(linear: BlockLinear, is_pair: bool) -> bool:
    """Tell whether `Kernels.packed_blocks` takes a joined weight: it knows the types and they fill panels."""
    if any(part.type_id not in KEPT_TYPES for part in linear.parts):
        return False
    whole = all(part.shape[0] % PANEL == 0 for part in linear.parts[:-1])
    return len(linear.parts) == 1 or (whole and not is_pair)


class HugePages:
    """Memory that the kernel may back with huge pages, which makes reading weights a tenth faster.

    Weights share large regions, because a huge page takes 2 MiB in one piece and many a weight is smaller.
    """

    def __init__(self, region_bytes: int = 64 << 20) -> None:
        self._region_bytes = region_bytes
        self._region: Tensor = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> Tensor:
        """Return uint8 memory, aligned to cache lines; it lives as long as somebody holds it.

        Raises:
            MemoryError: there is not so much.
        """
        start = -(-self._used // _LINE_BYTES) * _LINE_BYTES
        if start + num_bytes > len(self._region):
            self._region, start = _map(max(num_bytes, self._region_bytes)), 0
        self._used = start + num_bytes
        return self._region[start : self._used]


def _map(num_bytes: int) -> Tensor:
    try:
        region = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes for weights") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8)


def dequantizer(dtype: torch.dtype) -> Any:
    """Return the library's `stoker_*_dequantize` for a dtype, see csrc/api.h; None where it cannot run."""
    library = find_library()
    # What it needs of a CPU is what float32 kernels need, whatever the values are rounded to.
    if dtype not in _PREFIX or library is None or not library.stoker_supported() & 1:
        return None
    return getattr(library, f"{_PREFIX[dtype]}_dequantize")


def find_kernels(dtype: torch.dtype, num_threads: int) -> Kernels | None:
    """Return the kernels for a dtype; None where they do not exist, cannot run or compute wrongly."""
    library = find_library()
    if library is None or not library.stoker_supported() & _SUPPORTED_BIT.get(dtype, 0):
        return None
    kernels = Kernels(library, dtype, num_threads)
    if not _agrees(kernels):
        logger.warning("%s computes wrongly on this CPU; PyTorch's operators take its place", PATH.name)
        kernels.close()
        return None
    return kernels


def _agrees(kernels: Kernels) -> bool:
    """Compare a few products with PyTorch's."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(72, 40, generator=generator).to(kernels.dtype)
    bias = torch.randn(72, generator=generator).to(kernels.dtype)
    linear, kept = kernels.packed(Linear(weight, bias))
    tolerance = _TOLERANCE[kernels.dtype]
    for num_rows in (1, 5, 29):
        rows = torch.randn(num_rows, 40, generator=generator).to(kernels.dtype)
        expected = F.linear(rows.float(), weight.float(), bias.float())
        product = kernels.product(linear, rows).float()
        if not torch.allclose(product, expected, rtol=tolerance, atol=10 * tolerance):
            return False
    return bool(kept)
