"""Models that see images as well: where their files have the text part, which alone is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker_runtime.errors import ModelError
from stoker_runtime.model.checkpoint.config_values import mapping, unsupported

# As checkpoints were written before `transformers` 4.52 and since 5, and as they were written between.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
_IMAGE_PREFIXES = tuple(
    f"{before}{part}." for before in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
)
# What files say once, outside text_config, of all weights.
_SHARED_FIELDS = ("dtype", "torch_dtype", "quantization_config")


# The text part of each: the architecture that it is by itself, and how text_config says so.
_TEXT_PARTS = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral"),
}
# A field that `transformers` heeds in a text model by itself and not in a text part: windows in some layers
# instead of all, a cap of the logits.
_OWN_FIELDS = {"MistralForCausalLM": "layer_types", "Gemma3ForCausalLM": "final_logit_softcapping"}
WRAPPED_NAMES = tuple(_TEXT_PARTS)


def text_config(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Return the text part's architecture and the config.json that it would have by itself.

    Args:
        config: the parsed config.json.
        name: its architecture, one of WRAPPED_NAMES.

    Raises:
        ModelError: there is no text_config, or it is of another family.
    """
    text_part, wanted = _TEXT_PARTS[name]
    found = mapping(config, "text_config")
    if not found:
        raise ModelError(f"the model's text_config is {config.get('text_config')!r}, an object is needed")
    model_type = found.get("model_type", wanted)
    if model_type != wanted:
        raise unsupported(f"text_config.model_type = {model_type!r} in {name} (supported: {wanted!r})")
    own = _OWN_FIELDS[text_part]
    if found.get(own) is not None:
        raise unsupported(f"text_config.{own} in {name}")
    if config.get("is_causal", True) is not True:  # which counts for the text part as well
        raise unsupported(f"is_causal = {config['is_causal']!r}")
    shared = {key: config[key] for key in _SHARED_FIELDS if config.get(key) is not None}
    # Whether embeddings are tied is the whole model's business: `transformers` asks no text_config.
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
    return text_part, {**found, **shared, **tied}


def text_name(stored: str) -> str | None:
    """Return the name that a tensor has in the text part by itself; None for one that is for images.

    Raises:
        ModelError: reason UnsupportedModel; it is neither.
    """
    if stored.startswith(_IMAGE_PREFIXES):
        return None
    for prefix, instead in _TEXT_PREFIXES.items():
        if stored.startswith(prefix):
            return instead + stored.removeprefix(prefix)
    raise unsupported(f"tensor {stored}, neither of a language_model nor of what sees images,")
