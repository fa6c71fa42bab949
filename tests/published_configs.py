"""config.json files as checkpoints on Hugging Face have them, field by field, with sizes of small models.

Windows and original contexts are cut as well, so that a text of 200 tokens is beyond them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]
_SIZES: Config = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_COMMON: Config = {
    **_SIZES,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "use_cache": True,
}
_LLAMA2: Config = {
    **_COMMON,
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "torch_dtype": "float16",
}
_LLAMA3: Config = {
    **_LLAMA2,
    "attention_bias": False,
    "eos_token_id": [3, 4, 5],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
_SMOLLM2: Config = {
    **_LLAMA2,
    "attention_bias": False,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
}
_SMOLLM3: Config = {
    **_COMMON,
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": None,
    "layer_types": ["full_attention"] * 4,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "pretraining_tp": 2,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
}
del _SMOLLM3["tie_word_embeddings"]  # it is silent of them, and they are tied
_MISTRAL: Config = {
    **_COMMON,
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rope_theta": 10000.0,
    "sliding_window": 40,
}
_MIXTRAL: Config = {
    **_COMMON,
    "architectures": ["MixtralForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "router_jitter_noise": 0.0,
    "sliding_window": None,
}
_QWEN2: Config = {
    **_COMMON,
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
}
_QWEN3: Config = {
    **_QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 32,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
}
_QWEN3_MOE: Config = {
    **_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
}
_GEMMA: Config = {
    **_COMMON,
    "attention_bias": False,
    "cache_implementation": "hybrid",
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 32,
}
del _GEMMA["hidden_act"], _GEMMA["tie_word_embeddings"]
_GEMMA2: Config = {
    **_GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "rope_theta": 10000.0,
    "sliding_window_size": 4096,
}
_GEMMA3: Config = {
    **_GEMMA,
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window_pattern": 6,
}
_PHI3: Config = {
    **_COMMON,
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "embd_pdrop": 0.0,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 47,
}
_GRANITE: Config = {
    **_COMMON,
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "granite",
    "residual_multiplier": 0.22,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
}
_OLMO2: Config = {
    **_COMMON,
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 500000,
    "use_cache": False,
}


def _longrope(num_pairs: int, kind: str = "longrope") -> Config:
    return {
        "long_factor": [1.0 + i for i in range(num_pairs)],
        "short_factor": [1.0 + 0.1 * i for i in range(num_pairs)],
        "type": kind,
    }


def _chunks(size: int, local: int) -> Config:
    return {"chunk_size": size, "local_size": local, "original_max_position_embeddings": size}


_PHI3_128K: Config = {
    **_PHI3,
    "max_position_embeddings": 131072,
    "rope_scaling": _longrope(8),
    "sliding_window": 262144,
}
PUBLISHED: Mapping[str, Config] = {
    "Llama-2-7b": _LLAMA2,
    "Llama-3-8B": {**_LLAMA3, "max_position_embeddings": 8192, "rope_scaling": None, "eos_token_id": 2},
    "Llama-3.1-8B": _LLAMA3,
    "Llama-3.2-1B": {
        **_LLAMA3,
        "head_dim": 16,
        "rope_scaling": {**_LLAMA3["rope_scaling"], "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "DeepSeek-R1-Distill-Llama-8B": {**_LLAMA3, "eos_token_id": 2, "bos_token_id": 1},
    "SmolLM2-135M": _SMOLLM2,
    "SmolLM3-3B": _SMOLLM3,
    "Mistral-7B-v0.1": _MISTRAL,
    "Mistral-7B-v0.3": {**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None},
    "Mistral-Nemo": {
        **_MISTRAL,
        "head_dim": 32,
        "max_position_embeddings": 1024000,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "Ministral-8B": {**_MISTRAL, "head_dim": 32, "rope_theta": 100000000.0, "sliding_window": 32768},
    "Ministral-8B-by-layer": {
        **_MISTRAL,
        "head_dim": 32,
        "layer_types": ["full_attention", *["sliding_attention"] * 3],
        "rope_theta": 100000000.0,
    },
    "Mixtral-8x7B": _MIXTRAL,
    "Qwen2.5-7B": _QWEN2,
    "Qwen2.5-0.5B": {**_QWEN2, "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False},
    "Qwen2.5-7B-with-yarn": {
        **_QWEN2,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 64, "type": "yarn"},
    },
    "Qwen2.5-7B-1M": {
        **_QWEN2,
        "dual_chunk_attention_config": _chunks(262144, 8192),
        "max_position_embeddings": 1010000,
        "rope_theta": 10000000.0,
        "sliding_window": 32768,
    },
    "DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN2,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "use_mrope": False,
    },
    "Qwen3-0.6B": _QWEN3,
    "Qwen3-8B-with-yarn": {
        **_QWEN3,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "yarn"},
    },
    "Qwen3-30B-A3B": _QWEN3_MOE,
    "Qwen3-Coder-30B-A3B": {
        **_QWEN3_MOE,
        "max_position_embeddings": 262144,
        "qkv_bias": False,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": 0,
        "use_qk_norm": True,
    },
    "gemma-2-2b": _GEMMA2,
    "gemma-2-27b": {**_GEMMA2, "_attn_implementation": "eager", "query_pre_attn_scalar": 24},
    "gemma-3-1b": _GEMMA3,
    "gemma-3-270m": {
        **{key: _GEMMA3[key] for key in _GEMMA3 if key != "sliding_window_pattern"},
        "_sliding_window_pattern": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        "use_bidirectional_attention": False,
    },
    "Phi-3-mini-4k": _PHI3,
    "Phi-3-medium-4k": {**_PHI3, "interpolate_factor": 1},
    "Phi-3-mini-128k": _PHI3_128K,
    "Phi-3.5-mini": {**_PHI3_128K, "original_max_position_embeddings": 128},
    "phi-4": {
        **_PHI3,
        "max_position_embeddings": 16384,
        "original_max_position_embeddings": 16384,
        "rope_theta": 250000,
        "sliding_window": None,
    },
    "Phi-4-mini": {
        **_PHI3_128K,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 0.75,
        "rope_scaling": _longrope(6),
        "tie_word_embeddings": True,
    },
    "granite-3.0-2b": _GRANITE,
    "granite-3.3-8b": {
        **_GRANITE,
        "attention_multiplier": 0.0078125,
        "logits_scaling": 16.0,
        "max_position_embeddings": 131072,
        "rope_theta": 10000000.0,
    },
    "OLMo-2-7B": _OLMO2,
}
