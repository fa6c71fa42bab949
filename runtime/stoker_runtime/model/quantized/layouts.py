"""How AutoGPTQ, AutoAWQ and the writers of fp8 checkpoints lay a module's weight out, and back.

Sources: AutoGPTQ's and GPTQModel's QuantLinear (pack, and the conversion between their two formats of zero
points), AutoAWQ's packing for GEMM, compressed-tensors' float-quantized compressor, and the
weight_scale_inv of DeepSeek's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import AwqStorage, Fp8Storage, GptqStorage, Storage
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.quantized.weight import (
    Fp8Weight,
    IntWeight,
    QuantizedWeight,
    packed_words,
    unpacked,
)

# Where the eight columns that share a word lie in it, from the lowest bits up, is [0, 2, 4, 6, 1, 3, 5, 7];
# this finds each column again.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_AWQ_BITS = 4
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def gptq_weight(
    module: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], storage: GptqStorage
) -> IntWeight:
    """Read a module of a GPTQ checkpoint.

    Args:
        module: its name, for errors.
        tensors: qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out] and,
            if it was stored, g_idx [in]: the group of each input.
        shape: outputs and inputs.
        storage: of the checkpoint.

    Raises:
        ModelError: a tensor has another shape or type, or groups have other sizes than the checkpoint says.
    """
    outputs, inputs = shape
    bits, per_word = storage.bits, 32 // storage.bits
    group_size = storage.group_size or inputs
    groups = -(-inputs // group_size)
    if inputs % per_word or outputs % per_word:
        raise ModelError(
            f"module {module}: {outputs} outputs and {inputs} inputs do not fill words of 32 bits"
        )
    words = _checked(module, tensors, "qweight", (inputs // per_word, outputs), torch.int32)
    stored_zeros = _checked(module, tensors, "qzeros", (groups, outputs // per_word), torch.int32)
    scales = _checked(module, tensors, "scales", (groups, outputs), *_FLOATS)
    zeros = (unpacked(stored_zeros, bits, dim=1) + storage.zero_offset) & ((1 << bits) - 1)
    order = None
    if "g_idx" in tensors:
        order = _order(module, _checked(module, tensors, "g_idx", (inputs,), torch.int32), group_size)
    if order is not None:
        words = packed_words(unpacked(words, bits, dim=0)[order], bits)
    return IntWeight(words, zeros.to(torch.uint8), scales, bits, group_size, order)


def _order(module: str, group_of_input: Tensor, group_size: int) -> Tensor | None:
    """The inputs sorted by group; None where they are already."""
    in_order = torch.arange(len(group_of_input), dtype=torch.int32) // group_size
    if torch.equal(group_of_input, in_order):
        return None
    order = torch.argsort(group_of_input, stable=True)
    if not torch.equal(group_of_input[order], in_order):
        raise ModelError(f"tensor {module}.g_idx does not make groups of {group_size} inputs")
    return order


def awq_weight(
    module: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], storage: AwqStorage
) -> IntWeight:
    """Read a module of an AWQ checkpoint.

    Args:
        module: its name, for errors.
        tensors: qweight [in, out / 8], qzeros [groups, out / 8] and scales [groups, out].
        shape: outputs and inputs.
        storage: of the checkpoint.

    Raises:
        ModelError: as for gptq_weight.
    """
    outputs, inputs = shape
    per_word = 32 // _AWQ_BITS
    group_size = storage.group_size or inputs
    if inputs % per_word or outputs % per_word or inputs % group_size:
        raise ModelError(
            f"module {module}: {outputs} outputs and {inputs} inputs do not fill words of 32 bits and groups "
            f"of {group_size}"
        )
    groups = inputs // group_size
    qweight = _checked(module, tensors, "qweight", (inputs, outputs // per_word), torch.int32)
    qzeros = _checked(module, tensors, "qzeros", (groups, outputs // per_word), torch.int32)
    scales = _checked(module, tensors, "scales", (groups, outputs), *_FLOATS)
    words = packed_words(_awq_columns(qweight), _AWQ_BITS)
    return IntWeight(words, _awq_columns(qzeros).to(torch.uint8), scales, _AWQ_BITS, group_size, None)


def _awq_columns(words: Tensor) -> Tensor:
    """[rows, out / 8] -> [rows, out], columns in their own order."""
    codes = unpacked(words, _AWQ_BITS, dim=1).view(len(words), -1, len(_AWQ_PLACES))
    return codes[:, :, list(_AWQ_PLACES)].flatten(1)


def fp8_weight(
    module: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], storage: Fp8Storage
) -> Fp8Weight:
    """Read a module of an fp8 checkpoint.

    Args:
        module: its name, for errors.
        tensors: weight [out, in] float8_e4m3fn, and weight_scale or weight_scale_inv, either to be multiplied
            with: [], [1], [out] or [out, 1], or with blocks [out / block, in / block].
        shape: outputs and inputs.
        storage: of the checkpoint.

    Raises:
        ModelError: as for gptq_weight, or there is no scale.
    """
    outputs, inputs = shape
    codes = _checked(module, tensors, "weight", shape, FP8)
    names = [name for name in ("weight_scale", "weight_scale_inv") if name in tensors]
    if not names:
        raise ModelError(f"tensor {module}.weight_scale is missing beside {module}.weight, which is fp8")
    name = names[0]
    if storage.block is None:
        found = tuple(tensors[name].shape)
        is_single = found in ((), (1,), (1, 1))
        wanted = found if is_single or found == (outputs,) else (outputs, 1)
        scale = _checked(module, tensors, name, wanted, *_FLOATS).float().flatten()
        by_output = scale.expand(outputs).contiguous().unsqueeze(0)
        return Fp8Weight(codes, by_output, inputs, storage.rounds_inputs)
    block_outputs, block_inputs = storage.block
    blocks = (-(-outputs // block_outputs), -(-inputs // block_inputs))
    scale = _checked(module, tensors, name, blocks, *_FLOATS).float()
    by_output = scale.repeat_interleave(block_outputs, dim=0)[:outputs].T.contiguous()
    return Fp8Weight(codes, by_output, block_inputs, storage.rounds_inputs)


def _checked(
    module: str, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *dtypes: torch.dtype
) -> Tensor:
    if name not in tensors:
        raise ModelError(f"tensor {module}.{name} is missing")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
        raise ModelError(
            f"tensor {module}.{name} has shape {list(tensor.shape)}, the configuration makes it {list(shape)}"
        )
    if tensor.dtype not in dtypes:
        raise ModelError(f"tensor {module}.{name} is {tensor.dtype}, {dtypes[0]} is needed")
    return tensor


def stored_weight(
    storage: Storage, module: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]
) -> QuantizedWeight:
    """Return a module's weight, stored in whichever of the three ways; arguments and errors are theirs."""
    match storage:
        case GptqStorage():
            return gptq_weight(module, tensors, shape, storage)
        case AwqStorage():
            return awq_weight(module, tensors, shape, storage)
        case Fp8Storage():
            return fp8_weight(module, tensors, shape, storage)
