"""Reads from a config.json which layers rotate, how, and which attend through a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from stoker_runtime.errors import ModelError
from stoker_runtime.model.architecture import LayerKind, LongScaling
from stoker_runtime.model.checkpoint.config_values import flag, integer, mapping, unsupported
from stoker_runtime.model.checkpoint.rope_config import longest_context, rope_settings

# Which layers a sliding_window is for where layer_types does not say: "all"; all whatever it says
# ("regardless"), with use_sliding_window "everywhere"; with it also those that max_window_layers leaves over
# ("upper") or those without rope ("ropeless"); or every second ("alternate") or all but every sixth
# ("pattern"). Where the rule does not look at use_sliding_window, `transformers` does not either. A Mistral
# whose file has layer_types is what it calls a Ministral.
_WindowRule = Literal["all", "regardless", "upper", "ropeless", "everywhere", "alternate", "pattern"]
_SWITCHED_RULES: tuple[_WindowRule, ...] = ("upper", "ropeless", "everywhere")
_WINDOW_RULES: dict[str, _WindowRule] = {
    "Gemma2ForCausalLM": "alternate",
    "Gemma3ForCausalLM": "pattern",
    "MistralForCausalLM": "all",
    "MixtralForCausalLM": "regardless",
    "Phi3ForCausalLM": "regardless",
    "Qwen2ForCausalLM": "upper",
    "Qwen3ForCausalLM": "upper",
    "Qwen3MoeForCausalLM": "everywhere",
    "SmolLM3ForCausalLM": "ropeless",
}


@dataclass(frozen=True, slots=True)
class LayerDefaults:
    """What `transformers` takes where a config.json is silent.

    Args:
        rope_theta: base of the rotation.
        rope_interval: every so many layers, one has no rope.
        window_pattern: every so many layers, one has no window (only where the rule is "pattern").
        local_rope_theta: base of the rotation in layers with a window, where they have one of their own.
        has_experts: layers are mixtures.
        may_be_dense: unless the file says otherwise; elsewhere `transformers` does not look at these fields.
    """

    rope_theta: float = 10000.0
    rope_interval: int | None = None
    window_pattern: int = 6
    local_rope_theta: float | None = None
    has_experts: bool = False
    may_be_dense: bool = False


def layer_kinds(
    config: Mapping[str, Any], name: str, defaults: LayerDefaults, head_dim: int
) -> tuple[tuple[LayerKind, ...], int]:
    """Return what each layer is, and how many tokens they attend over at most.

    Args:
        config: the parsed config.json.
        name: of the architecture.
        defaults: of the family.
        head_dim: elements of a head.

    Raises:
        ModelError: reason InvalidModel or UnsupportedModel.
    """
    rotates = _rotates(config, defaults, integer(config, "num_hidden_layers"))
    has_local = defaults.local_rope_theta is not None
    usual, local = _rope_fields(config, has_local=has_local)
    # Where layers rotate in two ways, only the fields within each count.
    outer = {key: config[key] for key in config if not has_local or key != "original_max_position_embeddings"}
    read = partial(rope_settings, config=outer, head_dim=head_dim, is_phi=name == "Phi3ForCausalLM")
    rope = own = read(usual, "rope_theta", defaults.rope_theta)
    if defaults.local_rope_theta is not None:
        _refuse_truncate(usual, local)
        own = read(local, "rope_local_base_freq", defaults.local_rope_theta)
    longest = longest_context(config, rope.scaling)
    if isinstance(own.scaling, LongScaling):
        longest = min(longest, longest_context(config, own.scaling))
    windows, slides = _windows(config, _WINDOW_RULES.get(name), defaults, rotates, longest)
    ropes = [own if is_sliding else rope for is_sliding in slides]
    sparse = _sparse(config, defaults, len(rotates))
    kinds = tuple(
        LayerKind(rope if is_rotated else None, window, is_sparse)
        for rope, is_rotated, window, is_sparse in zip(ropes, rotates, windows, sparse, strict=True)
    )
    return kinds, longest


def _rope_fields(
    config: Mapping[str, Any], *, has_local: bool
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The rope's fields of most layers, and those of layers with a window where they rotate otherwise."""
    newer, older = mapping(config, "rope_parameters"), mapping(config, "rope_scaling")
    if newer and older and newer != older:
        raise unsupported("rope_scaling beside other rope_parameters (give one of them)")
    fields = newer or older
    by_type = sorted(key for key, value in fields.items() if key == "full_attention" or _is_object(value))
    if not by_type:
        if has_local and fields and (newer or "rope_type" not in older):
            raise unsupported("rope_parameters without full_attention, or rope_scaling without rope_type,")
        return fields, {}
    if not has_local or not set(by_type) <= {"full_attention", "sliding_attention"}:
        raise unsupported(f"rope_parameters for {', '.join(by_type)}")
    return mapping(fields, "full_attention"), mapping(fields, "sliding_attention")


def _refuse_truncate(*ropes: Mapping[str, Any]) -> None:
    """Where layers rotate in two ways `transformers` does not look at it: nobody knows what a file means."""
    for rope in ropes:
        if rope.get("truncate", True) is not True:
            raise unsupported(f"truncate = {rope['truncate']!r} in the rope_parameters of some layers")


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _sparse(config: Mapping[str, Any], defaults: LayerDefaults, num_layers: int) -> list[bool]:
    """Which layers have experts: every so many, less those that are listed."""
    if not defaults.may_be_dense:
        return [defaults.has_experts] * num_layers
    every = integer(config, "decoder_sparse_step", 1)
    if every < 1:
        raise ModelError(f"the model's decoder_sparse_step is {every}")
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ModelError(f"the model's mlp_only_layers is {dense!r}, a list of layers is needed")
    return [(index + 1) % every == 0 and index not in dense for index in range(num_layers)]


def _rotates(config: Mapping[str, Any], defaults: LayerDefaults, num_layers: int) -> list[bool]:
    """Which layers rotate: no_rope_layers has, despite its name, a 1 for each that does."""
    if defaults.rope_interval is None:
        return [True] * num_layers
    listed = config.get("no_rope_layers")
    if listed is not None:
        return [bool(flag) for flag in _per_layer("no_rope_layers", listed, num_layers)]
    interval = integer(config, "no_rope_layer_interval", defaults.rope_interval)
    if interval < 1:
        raise ModelError(f"the model's no_rope_layer_interval is {interval}")
    return [(index + 1) % interval != 0 for index in range(num_layers)]


def _windows(
    config: Mapping[str, Any],
    rule: _WindowRule | None,
    defaults: LayerDefaults,
    rotates: Sequence[bool],
    longest: int,
) -> tuple[list[int | None], list[bool]]:
    """The window of each layer, and which layers are of the kind that slides.

    A window as long as the longest context is none.
    """
    kinds = config.get("layer_types")
    if kinds is not None:
        others = set(map(str, _per_layer("layer_types", kinds, len(rotates)))) - {"full_attention"}
        is_known = others <= {"sliding_attention"} and rule is not None
        if others and not (is_known and config.get("sliding_window") is not None):
            raise unsupported(f"layer_types with {', '.join(sorted(others))}")
    slides = _slides(config, rule, defaults, kinds, rotates)
    size = config.get("sliding_window")
    if size is None or not any(slides):
        return [None] * len(rotates), slides
    window = integer({"sliding_window": size}, "sliding_window")
    if window < 1:
        raise ModelError(f"the model's sliding_window is {window}")
    is_limit = window < longest
    return [window if is_sliding and is_limit else None for is_sliding in slides], slides


def _slides(
    config: Mapping[str, Any],
    rule: _WindowRule | None,
    defaults: LayerDefaults,
    kinds: Sequence[str] | None,
    rotates: Sequence[bool],
) -> list[bool]:
    """Which layers a window is for."""
    indices = range(len(rotates))
    if rule is None:
        return [False for _ in indices]
    if rule in _SWITCHED_RULES and not flag(config, "use_sliding_window"):
        if kinds is not None and "sliding_attention" in kinds:
            raise unsupported("layer_types with sliding_attention beside use_sliding_window = false")
        return [False for _ in indices]
    if rule in ("regardless", "everywhere"):  # their attention does not look at layer_types
        return [True for _ in indices]
    if kinds is not None:
        return [kind == "sliding_attention" for kind in kinds]
    if rule == "all":
        return [True for _ in indices]
    if rule == "ropeless":
        return [not is_rotated for is_rotated in rotates]
    if rule == "alternate":
        return [index % 2 == 0 for index in indices]
    if rule == "pattern":
        every = integer(config, "sliding_window_pattern", defaults.window_pattern)
        if every < 1:
            raise ModelError(f"the model's sliding_window_pattern is {every}")
        return [(index + 1) % every != 0 for index in indices]
    first = integer(config, "max_window_layers", 28)
    return [index >= first for index in indices]


def _per_layer(key: str, values: Any, num_layers: int) -> Sequence[Any]:
    if not isinstance(values, list) or len(values) != num_layers:
        raise ModelError(f"the model's {key} is not a list of {num_layers}, one for each layer")
    return values
