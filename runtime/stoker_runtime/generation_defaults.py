"""What a model's own files say of generation: defaults of request fields and end tokens, checked. Pure.

A wrong value here would surface with the first request, in the engine, where it ends the process: so it is
refused while the model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker_runtime.errors import ModelError


@dataclass(frozen=True, slots=True)
class _Range:
    """The numbers that a sampling parameter may be."""

    lowest: float
    highest: float
    excludes_lowest: bool = False
    is_whole: bool = False

    def holds(self, value: object) -> bool:
        """Whether the value is a number in the range."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        return self.lowest <= value <= self.highest and not (self.excludes_lowest and value == self.lowest)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if self.excludes_lowest:
            return f"{kind} above {self.lowest:g} and at most {self.highest:g}"
        return f"{kind} from {self.lowest:g} to {self.highest:g}"


# As wide as the request fields of the same names, but for the temperature: a model may know itself better.
_RANGES = {
    "temperature": _Range(0, 100),
    "top_p": _Range(0, 1, excludes_lowest=True),
    "top_k": _Range(-1, 2**31 - 1, is_whole=True),
    "min_p": _Range(0, 1),
    "repetition_penalty": _Range(0.01, 100),
}
SAMPLING_DEFAULTS = tuple(_RANGES)
# By what `transformers` would pick other tokens and no request can ask for here, with what does nothing.
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "penalty_alpha"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty"), (0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (0, 1)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale", "typical_p"), (1,)),
    "encoder_repetition_penalty": (1,),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "stop_strings"), ([],)),
    **dict.fromkeys(("sequence_bias", "constraints", "force_words_ids"), ([], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("top_h", "dola_layers", "watermarking_config"), ()),
    "token_healing": (False,),
}
_LEAST_TOP_P = 1e-6  # below the probability of the likeliest token, however large the vocabulary
_NEW_TOKENS = _Range(1, 2**31 - 1, is_whole=True)


def generation_config_defaults(values: Mapping[str, Any], source: str) -> dict[str, float]:
    """Return what a generation_config.json gives where a request gives nothing, by the request fields' names.

    `do_sample: false` is a temperature of 0, whatever temperature stands beside it, as in `transformers`. A
    file without do_sample keeps its temperature: `transformers` would pick greedily then, but who writes a
    temperature down means it to be used, and servers (vLLM, SGLang) use it.

    `max_new_tokens` is `max_tokens`. `max_length` counts the prompt as well and is left out, as by vLLM and
    SGLang: in most files it repeats the model's context, in old ones it is a 20 that nobody chose.

    Args:
        values: what the file holds; null stands for no default.
        source: the file, for errors.

    Raises:
        ModelError: a value that means nothing; names the file and the field.
    """
    found = sampling_defaults(values, {name: name for name in SAMPLING_DEFAULTS}, source)
    draws, num_tokens = values.get("do_sample"), values.get("max_new_tokens")
    if draws is not None and not isinstance(draws, bool):
        raise ModelError(f"{source}: do_sample is {draws!r}; true or false is needed")
    if draws is False:
        found["temperature"] = 0.0
    if num_tokens is not None and not _is_among(num_tokens, (0, -1)):  # both are written for no limit
        if not _NEW_TOKENS.holds(num_tokens):
            raise ModelError(f"{source}: max_new_tokens is {num_tokens!r}; {_NEW_TOKENS} is needed")
        found["max_tokens"] = num_tokens
    return found


def uncomputed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a generation_config.json by which `transformers` picks tokens otherwise than here.

    They say how its author would search, not what the model is, and a request could not ask for them either.
    Nobody can edit the file of a published model, so it is served without them, as by vLLM and SGLang.

    Args:
        values: what the file holds; null stands for no default.
    """
    return {
        key: values[key]
        for key, neutral in _NEUTRAL_VALUES.items()
        if values.get(key) is not None and values[key] not in neutral
    }


def sampling_defaults(values: Mapping[str, Any], keys: Mapping[str, str], source: str) -> dict[str, float]:
    """Return the sampling defaults that a file gives, by the names of the request fields.

    Args:
        values: what the file holds; null stands for no default.
        keys: the file's own name of each parameter in SAMPLING_DEFAULTS that it may give.
        source: the file, for errors.

    Raises:
        ModelError: a value that means nothing; names the file and the field.
    """
    found = {}
    for key, name in keys.items():
        value = _without_oddities(name, values.get(key))
        if value is None:
            continue
        if not _RANGES[name].holds(value):
            raise ModelError(f"{source}: {key} is {value!r}; {_RANGES[name]} is needed")
        found[name] = value
    return found


def _without_oddities(name: str, value: Any) -> Any:
    """Return a value as a request would say it; None for one that stands for nothing at all.

    No request may have these, but authors write them, and nobody can edit a published file: a top_p of 0
    leaves the likeliest token, as in `transformers`, and one above 1 all; a penalty of 0 is written for none.
    """
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        return int(value)
    if name == "repetition_penalty" and _is_among(value, (0,)):
        return None
    if name == "top_p" and _is_among(value, (0,)):
        return _LEAST_TOP_P
    if name == "top_p" and isinstance(value, int | float) and 1 < value < math.inf:
        return 1.0
    return value


def _is_among(value: Any, numbers: Sequence[int]) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value in numbers


def token_ids(value: Any, key: str, source: str) -> list[int]:
    """Return the token ids of a field that holds one, a list of them or nothing; -1 is written for none.

    Raises:
        ModelError: it holds something else; names the file and the field.
    """
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [int(item) if isinstance(item, float) and item.is_integer() else item for item in listed]
    ids = [token_id for token_id in ids if token_id != -1]
    if not all(type(token_id) is int and 0 <= token_id < 2**31 for token_id in ids):
        raise ModelError(f"{source}: {key} is {value!r}; a token id or a list of them is needed")
    return ids
