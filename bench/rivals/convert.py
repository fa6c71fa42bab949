"""Writes a GGUF model as the folder that Hugging Face's and vLLM's loaders read; same weights, bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stoker_runtime.gguf_file import read_gguf
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource
from stoker_runtime.tokenizer_files import load_assets


def huggingface_folder(folder: Path, model: Path) -> Path:
    """Convert a GGUF file of the Llama family; return the folder.

    Raises:
        ModelError: the file cannot be read.
        ValueError: the model is of another family.
    """
    target = folder / f"{model.stem}.hf"
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    parsed = read_gguf(model)
    architecture = architecture_from_gguf(parsed)
    with GgufSource(parsed, architecture) as source:
        save_file(_weights(source, architecture), target / "model.safetensors", metadata={"format": "pt"})
    assets = load_assets(model)
    assets.tokenizer.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": assets.chat_template}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    (target / "config.json").write_text(json.dumps(_config(architecture, assets.eos_token_ids)))
    return target


def _weights(source: GgufSource, architecture: Architecture) -> dict[str, torch.Tensor]:
    heads = architecture.num_heads * architecture.head_dim
    kv_heads = architecture.num_kv_heads * architecture.head_dim
    size, inner = architecture.hidden_size, architecture.intermediate_size
    shapes = {
        "q_proj.weight": (heads, size),
        "k_proj.weight": (kv_heads, size),
        "v_proj.weight": (kv_heads, size),
        "o_proj.weight": (size, heads),
        "gate_proj.weight": (inner, size),
        "up_proj.weight": (inner, size),
        "down_proj.weight": (size, inner),
        "embed_tokens.weight": (architecture.vocab_size, size),
        "lm_head.weight": (architecture.vocab_size, size),
    }
    weights = {}
    for name in sorted(source.names):
        shape = shapes.get(".".join(name.split(".")[-2:]), (size,))
        weights[name] = torch.empty(shape, dtype=torch.bfloat16)
        source.copy_into(name, weights[name])
    return weights


def _config(architecture: Architecture, eos_token_ids: tuple[int, ...]) -> dict[str, object]:
    if architecture.name != "llama":
        raise ValueError(f"{architecture.name} models are not converted: give --model a llama GGUF file")
    (rope,) = architecture.ropes
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "rms_norm_eps": architecture.rms_norm_eps,
        "max_position_embeddings": architecture.max_position,
        "tie_word_embeddings": architecture.tied_embeddings,
        "rope_theta": rope.theta,
        "hidden_act": "silu",
        "eos_token_id": list(eos_token_ids),
    }
