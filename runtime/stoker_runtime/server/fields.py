"""Field types of the OpenAI requests: what is read and in which shapes. Pure.

A client's value is taken as far as it can be: numbers written as texts, one string for a list of one, nulls
in lists. Limits are those of this server's memory and time, not of somebody else's service.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, TypeGuard

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 1024
# Each is looked for in every new piece of text, all at once; the characters are what the search's table
# holds.
MAX_STOP_STRINGS = 4096
MAX_STOP_CHARS = 2**18
# Each step writes them into the logits one by one.
MAX_LOGIT_BIASES = 2**12
MAX_STOP_TOKEN_IDS = 2**14
MAX_BAD_WORDS = 2**10
MAX_N = 1024
MAX_LOGGED_CHARS = 512
_MAX_LOGGED_LABELS = 16
# What the server itself hands to a chat template.
RESERVED_TEMPLATE_VALUES = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
    }
    | {"raise_exception", "strftime_now"}
)


def invalid(message: str, param: str | None = None) -> PydanticCustomError:
    """Return the error of a field, or of the parameter named.

    Args:
        message: continues the parameter's name: "must be ...".
        param: what to name when it is not the field that is being read.
    """
    return PydanticCustomError("invalid", "{text}", {"text": message, "param": param})


def unsupported(param: str, neutral: Iterable[object], instead: str = "") -> PydanticCustomError:
    """Return the error of a field that is not offered.

    Args:
        param: its name.
        neutral: values that ask for nothing.
        instead: what to do in its place, as the sentence goes on.
    """
    allowed = " or ".join(repr(value) for value in neutral)
    text = "is not supported by this server; leave it out" + (f", or send {allowed}" if allowed else "")
    return PydanticCustomError("unsupported", "{text}", {"text": text + instead, "param": param})


def is_token_ids(value: object) -> TypeGuard[list[int]]:
    """Tell whether this is a non-empty list of non-negative whole numbers."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(item) is int and 0 <= item < 2**31 for item in value)
    )


def _prompts(value: object) -> list[str] | list[list[int]]:
    """Return the prompts of a completion: OpenAI takes one or many, as text or as token ids."""
    if isinstance(value, str):
        return [value]
    if is_token_ids(value):
        return [value]
    prompts: list[Any] = value if isinstance(value, list) else []
    is_uniform = all(isinstance(item, str) for item in prompts) or all(map(is_token_ids, prompts))
    if not prompts or not is_uniform:
        raise invalid(
            "must be a string, a list of strings, a list of token ids or a list of such lists, none empty"
        )
    if len(prompts) > MAX_PROMPTS:
        raise invalid(f"holds {len(prompts)} prompts; at most {MAX_PROMPTS} fit in a request")
    return prompts


def _strings(value: object) -> tuple[str, ...]:
    """Return a text, or a list of them, without those that are empty or null."""
    strings = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, str) for item in strings):
        raise invalid("must be a string or a list of strings")
    return tuple(dict.fromkeys(str(item) for item in strings if item))


def _stop(value: object) -> tuple[str, ...]:
    strings = _strings(value)
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid(f"holds {len(strings)} strings; at most {MAX_STOP_STRINGS} can be looked for")
    num_chars = sum(map(len, strings))
    if num_chars > MAX_STOP_CHARS:
        raise invalid(f"holds {num_chars} characters; at most {MAX_STOP_CHARS} can be looked for")
    return strings


def _bad_words(value: object) -> tuple[str, ...]:
    words = _strings(value)
    if len(words) > MAX_BAD_WORDS:
        raise invalid(f"holds {len(words)} words; at most {MAX_BAD_WORDS} can be kept out of an answer")
    return words


def _number(value: object, otherwise: str) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
    raise invalid(otherwise)


def _logit_bias(value: object) -> dict[int, float]:
    """Return biases by token id; llama.cpp's clients send pairs, others OpenAI's object."""
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        value = {str(token_id): -100 if bias is False else bias for token_id, bias in value}
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIASES:
        raise invalid(f"must be an object of up to {MAX_LOGIT_BIASES} token ids and biases")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        # ASCII digits only: int() would take signs, underscores, spaces and other scripts' digits.
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(f"has the key {key!r}, which is no token id")
        if bias is not None:
            biases[int(key)] = min(100.0, max(-100.0, _number(bias, f"must bias token {key} by a number")))
    return biases


def _template_values(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise invalid("must be an object of values by name")
    taken = sorted(name for name in RESERVED_TEMPLATE_VALUES & value.keys() if value[name] not in (None, []))
    if taken:
        raise invalid(f"may not set {taken[0]!r}")
    return {name: item for name, item in value.items() if name not in RESERVED_TEMPLATE_VALUES}


def _logged(value: object) -> str:
    """Return a label for the log, which changes no answer, so that nothing is wrong with any."""
    return str(value)[:MAX_LOGGED_CHARS]


def _logged_labels(value: object) -> dict[str, str]:
    items = list(value.items()) if isinstance(value, dict) else [("metadata", value)]
    return {_logged(key): _logged(item) for key, item in items[:_MAX_LOGGED_LABELS]}


def _seed(value: int) -> int | None:
    """Return None for -1, as llama.cpp's and vLLM's clients ask for a random one; others wrap at 64 bits."""
    return None if value == -1 else value % 2**63


_ID_SCHEMA = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}
_IDS_SCHEMA = {"type": "array", "items": _ID_SCHEMA, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


def _strings_schema(most: int) -> dict[str, Any]:
    return {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": ["string", "null"]}, "maxItems": most},
            {"type": "null"},
        ]
    }


_TEXT_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": ["string", "null"]}},
    "required": ["type", "text"],
}
_MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "minLength": 1},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": {"anyOf": [_TEXT_PART_SCHEMA, {"type": "string"}]}},
            ]
        },
        "name": {"type": ["string", "null"]},
        "reasoning_content": {"type": ["string", "null"]},
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_call_id": {"type": ["string", "null"]},
    },
    "required": ["role"],
}
MESSAGES_SCHEMA = {"type": "array", "items": _MESSAGE_SCHEMA, "minItems": 1}
_BIAS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number"},
            "maxProperties": MAX_LOGIT_BIASES,
        },
        {"type": "null"},
    ]
}
_TEMPLATE_SCHEMA = {
    "type": ["object", "null"],
    "propertyNames": {"not": {"enum": sorted(RESERVED_TEMPLATE_VALUES)}},
}
_ANYTHING_SCHEMA = {"description": "Goes to the log line of the request, cut where it is long."}

Prompts = Annotated[list[str] | list[list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
StopStrings = Annotated[
    tuple[str, ...], PlainValidator(_stop), WithJsonSchema(_strings_schema(MAX_STOP_STRINGS))
]
BadWords = Annotated[
    tuple[str, ...], PlainValidator(_bad_words), WithJsonSchema(_strings_schema(MAX_BAD_WORDS))
]
LogitBias = Annotated[dict[int, float], PlainValidator(_logit_bias), WithJsonSchema(_BIAS_SCHEMA)]
TemplateValues = Annotated[
    dict[str, object], PlainValidator(_template_values), WithJsonSchema(_TEMPLATE_SCHEMA)
]
LogText = Annotated[str, PlainValidator(_logged), WithJsonSchema(_ANYTHING_SCHEMA)]
LogLabels = Annotated[dict[str, str], PlainValidator(_logged_labels), WithJsonSchema(_ANYTHING_SCHEMA)]
Seed = Annotated[int, AfterValidator(_seed), Field(description="-1: a random one")]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# -1 is llama.cpp's and LM Studio's "no limit", -2 is llama.cpp's and Ollama's "until the context is full".
TokenLimit = Annotated[int, Field(ge=-2, lt=2**31, description="-1 and -2: no limit of its own")]
