"""Field types of the OpenAI requests: what is read, in which shape, and what is refused by name. Pure."""

from __future__ import annotations

from typing import Annotated, Any, TypeGuard

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MAX_PROMPTS = 1024
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_N = 128
MAX_TEMPLATE_VALUES = 32
# What the server itself hands to a chat template.
RESERVED_TEMPLATE_VALUES = frozenset(
    {
        "messages",
        "add_generation_prompt",
        "tools",
        "documents",
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
    }
    | {"raise_exception", "strftime_now"}
)


class Only:
    """A parameter this server does not offer: only values that ask for nothing are accepted.

    Args:
        values: the values that change no answer. Leaving the parameter out or sending null always works.
    """

    def __init__(self, *values: object) -> None:
        self._values = (None, *values)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "enum": list(self._values),
            "description": "Not supported: only a value that asks for nothing.",
        }

    def _check(self, value: object) -> object:
        # To Python, True is 1; in JSON it is not, while 1 and 1.0 are one number.
        is_bool = isinstance(value, bool)
        if any(value == allowed and isinstance(allowed, bool) is is_bool for allowed in self._values):
            return value
        raise PydanticCustomError("unsupported", "is not supported by this server; leave it out")


def invalid(message: str, param: str | None = None) -> PydanticCustomError:
    """Return the error of a field, or of the parameter named.

    Args:
        message: continues the parameter's name: "must be ...".
        param: what to name when a whole body is checked.
    """
    return PydanticCustomError("invalid", "{text}", {"text": message, "param": param})


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


def _stop(value: object) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise invalid(f"must be a string or a list of up to {MAX_STOP_STRINGS} strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid(f"holds {len(strings)} strings; at most {MAX_STOP_STRINGS} are allowed")
    if not all(0 < len(item) <= MAX_STOP_CHARS for item in strings):
        raise invalid(f"must hold strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(dict.fromkeys(strings))


def _text_content(value: object) -> str:
    """Return a message's text; parts of type text are joined by line breaks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid("must be a string or a list of parts of type text")
    return "\n".join(_part_text(number, part) for number, part in enumerate(value))


def _part_text(number: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise invalid(f'part {number} must be an object such as {{"type": "text", "text": "..."}}')
    if kind != "text":
        raise invalid(
            f"part {number} is of type {kind!r}, but this server takes text only, "
            "also for models that see images"
        )
    unknown = sorted(set(part) - {"type", "text"})
    if unknown:
        raise invalid(f"part {number} has the unknown field {unknown[0]!r}")
    if not isinstance(part.get("text"), str):
        raise invalid(f"part {number} needs a string in `text`")
    return str(part["text"])


def _logit_bias(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIASES:
        raise invalid(f"must be an object of up to {MAX_LOGIT_BIASES} token ids and biases")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        # ASCII digits only: int() would take signs, underscores, spaces and other scripts' digits.
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(f"has the key {key!r}, which is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise invalid(f"must bias token {key} by a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


def _template_values(value: object) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATE_VALUES:
        raise invalid(f"must be an object of up to {MAX_TEMPLATE_VALUES} values")
    taken = sorted(RESERVED_TEMPLATE_VALUES & set(value))
    if taken:
        raise invalid(f"may not set {taken[0]!r}")
    wrong = sorted(key for key, item in value.items() if not isinstance(item, str | int | float | None))
    if wrong:
        raise invalid(f"has a value for {wrong[0]!r} that is no string, number, boolean or null")
    return value


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
_STOP_STRING_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOP_SCHEMA = {
    "anyOf": [
        _STOP_STRING_SCHEMA,
        {"type": "array", "items": _STOP_STRING_SCHEMA, "maxItems": MAX_STOP_STRINGS},
        {"type": "null"},
    ]
}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA, "minItems": 1}]}
_BIAS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LOGIT_BIASES,
        },
        {"type": "null"},
    ]
}
_SCALAR_SCHEMA = {"type": ["string", "number", "boolean", "null"]}
_TEMPLATE_SCHEMA = {
    "type": ["object", "null"],
    "additionalProperties": _SCALAR_SCHEMA,
    "propertyNames": {"not": {"enum": sorted(RESERVED_TEMPLATE_VALUES)}},
    "maxProperties": MAX_TEMPLATE_VALUES,
}

Prompts = Annotated[list[str] | list[list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
StopStrings = Annotated[tuple[str, ...], PlainValidator(_stop), WithJsonSchema(_STOP_SCHEMA)]
TextContent = Annotated[str, PlainValidator(_text_content), WithJsonSchema(_CONTENT_SCHEMA)]
LogitBias = Annotated[dict[int, float], PlainValidator(_logit_bias), WithJsonSchema(_BIAS_SCHEMA)]
TemplateValues = Annotated[
    dict[str, object], PlainValidator(_template_values), WithJsonSchema(_TEMPLATE_SCHEMA)
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
