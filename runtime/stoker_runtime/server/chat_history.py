"""A client's messages in the form in which a chat template expects them. Pure.

Clients keep histories that other servers and other models' templates have left their marks on: null contents,
arguments as JSON text, functions from before there were tools. Nothing that a message says is lost here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

# One thing under three names: DeepSeek's and Qwen's, gpt-oss's, and the one vLLM answers with.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class TemplateShape:
    """What a chat template expects of messages, see template_probe.

    Args:
        part_roles: roles whose content may be a list of parts, all of which are written.
        list_roles: those of them whose content must be one.
        tool_results: it writes messages of the role tool.
        text_arguments: it wants a call's arguments as JSON text rather than as an object.
        null_with_calls: it asks whether the content beside calls is none, and writes less when it is.
        developer: it knows the role developer.
        old_functions: it knows function_call and the role function, which tools took the place of.
    """

    part_roles: frozenset[str] = frozenset()
    list_roles: frozenset[str] = frozenset()
    tool_results: bool = False
    text_arguments: bool = False
    null_with_calls: bool = False
    developer: bool = False
    old_functions: bool = False

    def kind(self, role: str) -> str:
        """Return the role whose content this one's is like: templates write unknown roles as users."""
        return role if role in ("system", "assistant", "tool") else "user"


def prepare(messages: Sequence[Mapping[str, Any]], shape: TemplateShape) -> list[Message]:
    """Return messages as a template of this shape reads them; what it may not know is still there."""
    prepared: list[Message] = []
    for number, message in enumerate(messages):
        made = {key: value for key, value in message.items() if value is not None}
        if not shape.old_functions:
            _replace_functions(made, number, prepared)
        if made["role"] == "developer" and not shape.developer:
            made["role"] = "system"
        if "tool_calls" in made:
            _prepare_calls(made, shape)
        thoughts = next((made[key] for key in REASONING_FIELDS if made.get(key)), None)
        if thoughts is not None:
            made = {**dict.fromkeys(REASONING_FIELDS, thoughts), **made}
        made["content"] = _content(made, shape)
        prepared.append(made)
    return prepared


def _replace_functions(message: Message, number: int, before: Sequence[Message]) -> None:
    """Turn a call of a function, or its result, into that of a tool."""
    call = message.get("function_call")
    if isinstance(call, Mapping) and not message.get("tool_calls"):
        del message["function_call"]
        # Nine characters, because Mistral's templates take no other ids.
        message["tool_calls"] = [{"id": f"call{number:05d}", "type": "function", "function": dict(call)}]
    if message["role"] == "function":
        message["role"] = "tool"
        ids = [call.get("id") for earlier in before for call in calls_of(earlier)]
        if ids and ids[-1] is not None:
            message.setdefault("tool_call_id", ids[-1])


def calls_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the calls of tools in a message."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _prepare_calls(message: Message, shape: TemplateShape) -> None:
    """Give calls' arguments the right form; an empty list, which some templates take for calls, goes."""
    if not message["tool_calls"]:
        del message["tool_calls"]
        return
    if not isinstance(message["tool_calls"], list):
        return
    made = []
    for call in message["tool_calls"]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = _arguments(function.get("arguments"), shape.text_arguments)
            call = {**call, "function": {**function, "arguments": arguments}}
        made.append(call)
    message["tool_calls"] = made


def _arguments(value: object, as_text: bool) -> object:
    if value is None or value == "":
        value = {}
    if as_text:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, dict) else value


def _content(message: Mapping[str, Any], shape: TemplateShape) -> str | list[Any] | None:
    kind, content = shape.kind(message["role"]), message.get("content")
    if not content:
        if message.get("tool_calls") and shape.null_with_calls:
            return None
        return [] if kind in shape.list_roles else ""
    if isinstance(content, list):
        return content if kind in shape.part_roles else joined(content, "\n")
    return [text_part(str(content))] if kind in shape.list_roles else str(content)


def text_part(text: str) -> Message:
    """Return a part of a message's content."""
    return {"type": "text", "text": text}


def joined(content: str | Sequence[Any] | None, separator: str) -> str:
    """Return the text of a content; parts without text have no say in it."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content or () if isinstance(part, Mapping))
    return separator.join(text for text in texts if isinstance(text, str))
