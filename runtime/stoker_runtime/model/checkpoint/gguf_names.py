"""Which of a GGUF file's tensors is which of Hugging Face's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import GgufFile, GgufTensor
from stoker_runtime.model.architecture import Architecture, Family, LongScaling
from stoker_runtime.model.checkpoint.dequantize import block_format
from stoker_runtime.model.checkpoint.gguf_layers import LONG_DIVISORS, SHORT_DIVISORS

# Architectures whose rotary pairs are neighbours in the file, where Hugging Face has halves of a head.
INTERLEAVED = frozenset({"llama", "granite", "smollm3"})

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}
_NORMS_BEHIND = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_STACKS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def hugging_face_tensors(gguf: GgufFile, architecture: Architecture) -> dict[str, GgufTensor]:
    """Return a file's tensors by Hugging Face's names, or their own where those have none.

    The experts of a layer, which a file stacks, are tensors of their own here.

    Raises:
        ModelError: a stack holds another number of experts than the metadata says.
    """
    names = _layer_names(architecture.family)
    has_long_rope = any(isinstance(rope.scaling, LongScaling) for rope in architecture.ropes)
    read = {LONG_DIVISORS, SHORT_DIVISORS} if has_long_rope else set()  # they are in the architecture
    num_experts = 0 if architecture.experts is None else architecture.experts.num_experts
    found: dict[str, GgufTensor] = {}
    for tensor in gguf.tensors.values():
        if tensor.name not in read:
            found.update(_named(tensor, names, num_experts))
    return found


def _layer_names(family: Family) -> Mapping[str, str]:
    names = dict(_LAYER)
    if family.norms != "inputs":
        names.update(_NORMS_BEHIND)
    if family.has_fused_projections:
        names.update(_FUSED)
    return names


def _named(
    tensor: GgufTensor, names: Mapping[str, str], num_experts: int
) -> Iterator[tuple[str, GgufTensor]]:
    match = _TENSOR.fullmatch(tensor.name)
    if match is None:
        yield _GLOBAL.get(tensor.name, tensor.name), tensor
    elif match[2] in _STACKS and len(tensor.shape) == 3 and match[3] == "weight":
        if tensor.shape[0] != num_experts:
            raise ModelError(
                f"tensor {tensor.name} has {tensor.shape[0]} experts, the metadata says {num_experts}"
            )
        module = f"model.layers.{match[1]}.mlp.experts"
        for index, expert in enumerate(_unstacked(tensor)):
            yield f"{module}.{index}.{_STACKS[match[2]]}.weight", expert
    elif match[2] in names:
        yield f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}", tensor
    else:
        yield tensor.name, tensor


def _unstacked(tensor: GgufTensor) -> Iterator[GgufTensor]:
    count, *shape = tensor.shape
    form = block_format(tensor.type_id)  # None where the tensor will be refused when it is read
    num_bytes = 0 if form is None else math.prod(shape) // form.num_values * form.num_bytes
    for index in range(count):
        yield replace(tensor, shape=tuple(shape), offset=tensor.offset + index * num_bytes)
