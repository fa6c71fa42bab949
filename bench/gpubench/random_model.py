"""A Hugging Face directory with the shape of a real model and random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model, or with experts of a Mixtral model, whose intermediate_size is an expert's."""

    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    vocab_size: int = 128256
    max_position: int = 8192
    num_experts: int = 0
    num_experts_per_token: int = 2

    @property
    def head_dim(self) -> int:
        """Of each head."""
        return self.hidden_size // self.num_heads

    def config(self, dtype: str) -> dict[str, Any]:
        """What config.json says."""
        family = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        mixture: dict[str, Any] = {}
        if self.num_experts:
            family = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
            mixture = {
                "num_local_experts": self.num_experts,
                "num_experts_per_tok": self.num_experts_per_token,
            }
        return {
            **family,
            **mixture,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
        }


LLAMA_8B = Shape()


def write_random_model(folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Write config, tokenizer and weights, a shard per layer; the device makes the numbers faster.

    Raises:
        OSError: the folder has no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(shape.config(name)))
    _tokenizer(shape.vocab_size).save(str(folder / "tokenizer.json"))
    shards = {f"layer-{index:03}": _layer(shape, index) for index in range(shape.num_layers)}
    shards["frame"] = {
        "model.embed_tokens.weight": (shape.vocab_size, shape.hidden_size),
        "lm_head.weight": (shape.vocab_size, shape.hidden_size),
        "model.norm.weight": (shape.hidden_size,),
    }
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    total = 0
    for shard, tensors in shards.items():
        values = {key: _random(size, dtype, device, generator) for key, size in tensors.items()}
        total += sum(value.nbytes for value in values.values())
        weight_map |= dict.fromkeys(values, f"{shard}.safetensors")
        save_file(values, folder / f"{shard}.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _layer(shape: Shape, index: int) -> dict[str, tuple[int, ...]]:
    hidden, heads = shape.hidden_size, shape.num_heads * shape.head_dim
    kv_heads = shape.num_kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return {f"model.layers.{index}.{name}.weight": size for name, size in (sizes | _mlp(shape)).items()}


def _mlp(shape: Shape) -> dict[str, tuple[int, ...]]:
    up, down = (shape.intermediate_size, shape.hidden_size), (shape.hidden_size, shape.intermediate_size)
    if not shape.num_experts:
        return {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    sizes: dict[str, tuple[int, ...]] = {"block_sparse_moe.gate": (shape.num_experts, shape.hidden_size)}
    for expert in range(shape.num_experts):
        prefix = f"block_sparse_moe.experts.{expert}"
        sizes |= {f"{prefix}.w1": up, f"{prefix}.w3": up, f"{prefix}.w2": down}
    return sizes


def _random(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=dtype)
    weight = torch.empty(size, device=device).normal_(std=size[1] ** -0.5, generator=generator)
    return weight.to(dtype).cpu()


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes, and beyond them a word for each id, so that whatever the model picks becomes text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"Ġw{index}" for index in range(len(alphabet), vocab_size))][:vocab_size]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
