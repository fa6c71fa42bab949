"""Reads from a config.json how a checkpoint's weights are quantized; what cannot be read is refused by name.

Sources: the fields that AutoGPTQ and GPTQModel, AutoAWQ, transformers' fine-grained fp8 and
compressed-tensors write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import AwqStorage, Fp8Storage, GptqStorage, Storage
from stoker_runtime.model.checkpoint.config_values import flag, integer, mapping, unsupported

_FIELD = "quantization_config"
# Zero points are stored less one, except in the newer of the two formats.
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


def read_storage(config: Mapping[str, Any]) -> Storage | None:
    """Return how the weights are stored; None for plain numbers.

    Raises:
        ModelError: reason InvalidModel or UnsupportedModel; names the field.
    """
    found = config.get(_FIELD)
    if not found:
        if config.get("quantization"):  # MLX's own field
            raise _other_method("MLX's (quantization)")
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"the model's {_FIELD} is {found!r}, an object is needed")
    method = found.get("quant_method")
    if method == "bitsandbytes" and not (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return None  # which says that nothing was quantized
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        is_mlx = method is None and {"group_size", "bits"} <= found.keys()
        raise _other_method(f"MLX's ({_FIELD})" if is_mlx else f"{_FIELD}.quant_method = {method!r}")
    return reader(found)


def _other_method(what: str) -> ModelError:
    return ModelError(
        f"{what} is a way to quantize that is not supported (supported: {', '.join(_READERS)}); use the "
        "original checkpoint, which --quantization int8 or fp8 can round, or one in GPTQ, AWQ, fp8 or GGUF",
        reason="UnsupportedModel",
    )


def _gptq(fields: Mapping[str, Any]) -> GptqStorage:
    bits = integer(fields, "bits")
    if bits not in (4, 8):
        raise unsupported(f"{_FIELD}.bits = {bits} (supported: 4, 8)")
    form = fields.get("checkpoint_format") or "gptq"
    if not isinstance(form, str) or form not in _ZERO_OFFSETS:
        raise unsupported(f"{_FIELD}.checkpoint_format = {form!r} (supported: {', '.join(_ZERO_OFFSETS)})")
    if flag(fields, "is_marlin_format"):  # how older files say checkpoint_format = marlin
        raise unsupported(f"{_FIELD}.is_marlin_format = true")
    if fields.get("dynamic"):
        raise unsupported(f"{_FIELD}.dynamic, other settings for some modules,")
    _refuse_quantized_head(fields)
    return GptqStorage(bits, _group_size(fields, "group_size"), _ZERO_OFFSETS[form])


def _awq(fields: Mapping[str, Any]) -> AwqStorage:
    bits = integer(fields, "bits" if "bits" in fields else "w_bit")
    if bits != 4:
        raise unsupported(f"{_FIELD}.bits = {bits} (supported: 4)")
    version = fields.get("version") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise unsupported(f"{_FIELD}.version = {version!r} (supported: 'gemm')")
    if not flag(fields, "zero_point", default=True):
        raise unsupported(f"{_FIELD}.zero_point = false")
    _refuse_quantized_head(fields)
    return AwqStorage(_group_size(fields, "group_size" if "group_size" in fields else "q_group_size"))


def _fp8(fields: Mapping[str, Any]) -> Fp8Storage:
    form = fields.get("fmt") or "e4m3"
    if form not in ("e4m3", "float8_e4m3fn"):
        raise unsupported(f"{_FIELD}.fmt = {form!r} (supported: 'e4m3')")
    if fields.get("scale_fmt") is not None:
        raise unsupported(f"{_FIELD}.scale_fmt = {fields['scale_fmt']!r}")
    return Fp8Storage(_block(fields, "weight_block_size"), rounds_inputs=True)


def _compressed_tensors(fields: Mapping[str, Any]) -> Fp8Storage:
    if fields.get("kv_cache_scheme") is not None:
        raise unsupported(f"{_FIELD}.kv_cache_scheme")
    if mapping(fields, "sparsity_config").get("format") not in (None, "dense"):
        raise unsupported(f"{_FIELD}.sparsity_config")
    groups = mapping(fields, "config_groups")
    found = {_group_storage(fields, name, mapping(groups, name)) for name in groups}
    if len(found) != 1:
        raise unsupported(f"{_FIELD}.config_groups with {len(found)} ways to store weights")
    return found.pop()


def _group_storage(fields: Mapping[str, Any], name: str, group: Mapping[str, Any]) -> Fp8Storage:
    form = group.get("format") or fields.get("format")
    if form not in ("float-quantized", "naive-quantized"):
        raise unsupported(f"{_FIELD}.format = {form!r} (supported: 'float-quantized')")
    weights = mapping(group, "weights")
    kind = (weights.get("type"), weights.get("num_bits"))
    if kind != ("float", 8):
        raise unsupported(f"{_FIELD}.config_groups.{name}: weights of type {kind[0]!r} with {kind[1]!r} bits")
    rounds_inputs = group.get("input_activations") is not None
    strategy = weights.get("strategy")
    if strategy == "block":
        block = _block(weights, "block_structure")
        if block is None:
            raise ModelError(f"the model's {_FIELD}.config_groups.{name} lacks its block_structure")
        return Fp8Storage(block, rounds_inputs)
    if strategy not in ("tensor", "channel"):
        raise unsupported(
            f"{_FIELD}.config_groups.{name}: strategy = {strategy!r} (supported: tensor, channel, block)"
        )
    return Fp8Storage(None, rounds_inputs)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Storage]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
}


def _group_size(fields: Mapping[str, Any], key: str) -> int | None:
    size = integer(fields, key)
    if size != -1 and size < 1:
        raise ModelError(f"the model's {_FIELD}.{key} is {size}, -1 or a number of inputs is needed")
    return None if size == -1 else size


def _block(fields: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    found = fields.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2:
        raise ModelError(f"the model's {_FIELD}.{key} is {found!r}, two sizes are needed")
    outputs, inputs = (integer({key: size}, key) for size in found)
    if outputs < 1 or inputs < 1:
        raise ModelError(f"the model's {_FIELD}.{key} is {found!r}, two sizes are needed")
    return outputs, inputs


def _refuse_quantized_head(fields: Mapping[str, Any]) -> None:
    if flag(fields, "lm_head"):
        raise unsupported(f"{_FIELD}.lm_head = true")
