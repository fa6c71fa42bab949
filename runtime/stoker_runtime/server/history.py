"""The messages of a chat as clients keep them: what a template can read is kept, whoever wrote it. Pure.

A history describes the past. Refusing a message for what another server, another model or a framework left in
it would end the conversation, so only what this model cannot read at all, such as an image, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker_runtime.server.fields import invalid

# Types of parts that are text, and the field that has it. `refusal` is what an assistant said in place of an
# answer.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# What an assistant thought before it answered, by the field that has it; nothing of an encrypted one can be
# read.
_REASONING_PARTS = {"thinking": "thinking", "reasoning": "text", "redacted_thinking": ""}
_MAX_NAMED = 64


@dataclass(frozen=True, slots=True)
class History:
    """A chat's messages.

    Args:
        messages: each has a `role`; its `content`, where it has one, is a text or a list of parts of type
            text. Null values are gone, all other fields are as they came.
        ignored: paths of what was left out of their parts.
    """

    messages: tuple[dict[str, Any], ...]
    ignored: tuple[str, ...] = ()


def read_history(value: object) -> History:
    """Return the messages of a body.

    Raises:
        PydanticCustomError: names the message and the field that cannot be read.
    """
    if not isinstance(value, list) or not value:
        raise invalid("must be a list of at least one message")
    ignored: dict[str, None] = {}
    messages = tuple(_message(index, message, ignored) for index, message in enumerate(value))
    return History(messages, tuple(ignored)[:_MAX_NAMED])


def _message(index: int, value: object, ignored: dict[str, None]) -> dict[str, Any]:
    path = f"messages[{index}]"
    if not isinstance(value, dict):
        raise invalid('must be an object such as {"role": "user", "content": "..."}', path)
    message = {key: item for key, item in value.items() if item is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise invalid("must say who speaks, such as user or assistant", f"{path}.role")
    content = message.get("content")
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, list):
        message["content"], reasoning = _parts(path, content, ignored)
        if reasoning:
            message.setdefault("reasoning_content", reasoning)
    elif content is not None and not isinstance(content, str):
        raise invalid("must be a text, a list of parts or null", f"{path}.content")
    return message


def _parts(path: str, parts: list[object], ignored: dict[str, None]) -> tuple[list[dict[str, str]], str]:
    """Return the parts that are text, and what the others say of reasoning."""
    kept: list[dict[str, str]] = []
    reasoning: list[str] = []
    for number, part in enumerate(parts):
        where = f"{path}.content[{number}]"
        if isinstance(part, str):
            kept.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise invalid('must be an object such as {"type": "text", "text": "..."}', where)
        kind = part.get("type") or ("text" if "text" in part else None)
        if kind in _REASONING_PARTS:
            name = _REASONING_PARTS[kind]
            reasoning += [text for text in [part.get(name)] if isinstance(text, str)]
        elif kind in _TEXT_PARTS:
            name = _TEXT_PARTS[kind]
            kept.append({"type": "text", "text": _text_of(part, name, where)})
        else:
            raise invalid(
                f"is of type {kind!r}, but this server reads text only, also for models that see images; "
                "leave it out",
                where,
            )
        unread = (key for key, item in part.items() if key not in ("type", name) and item is not None)
        ignored.update(dict.fromkeys(f"messages[].content[].{key}" for key in unread))
    return kept, "".join(reasoning)


def _text_of(part: Mapping[str, Any], name: str, where: str) -> str:
    text = part.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise invalid("must be a text", f"{where}.{name}")
    return text
