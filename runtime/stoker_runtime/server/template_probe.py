"""What a chat template expects of messages, found by rendering small ones.

Its source tells less: contents go through macros and variables of any name, and one role's are looped over
where another's are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import nodes

from stoker_runtime.server.chat_history import Message, TemplateShape, text_part

Render = Callable[[Sequence[Mapping[str, Any]]], str | None]  # None: the template takes no such messages

_TEXTS = ("first0needle", "second1needle")
_PARTS = [text_part(text) for text in _TEXTS]
_USER = {"role": "user", "content": "hello"}
_ARGUMENT = "third2needle"
_CALL_ID = "abcDEF123"  # as Mistral's templates want ids


def probe(render: Render, syntax: nodes.Template) -> TemplateShape:
    """Return what the template expects.

    Args:
        render: renders messages as they are.
        syntax: of the template, for names that are in it or not.
    """
    words = {const.value for const in syntax.find_all(nodes.Const) if isinstance(const.value, str)}
    words |= {access.attr for access in syntax.find_all(nodes.Getattr)}
    text_arguments = not _writes_call(render, {"argument": _ARGUMENT}) and _writes_call(
        render, f'{{"argument": "{_ARGUMENT}"}}'
    )
    around = {
        "system": ([], [_USER]),
        "user": ([], []),
        "assistant": ([_USER], [_USER]),
        "tool": ([_USER, _call('{"a": 1}' if text_arguments else {"a": 1})], []),
    }
    takes_text, takes_parts = set(), set()
    for role, (before, after) in around.items():
        message = {"role": role, "name": "f", "tool_call_id": _CALL_ID} if role == "tool" else {"role": role}
        if _writes(render([*before, {**message, "content": _TEXTS[0]}, *after]), _TEXTS[:1]):
            takes_text.add(role)
        if _writes(render([*before, {**message, "content": _PARTS}, *after]), _TEXTS):
            takes_parts.add(role)
    return TemplateShape(
        part_roles=frozenset(takes_parts),
        list_roles=frozenset(takes_parts - takes_text),
        tool_results="tool" in takes_parts | takes_text,
        text_arguments=text_arguments,
        null_with_calls=_writes_less_for_null(render, '{"a": 1}' if text_arguments else {"a": 1}),
        developer="developer" in words,
        old_functions="function_call" in words or "tool_calls" not in words,
    )


def _writes(text: str | None, needles: Sequence[str]) -> bool:
    """Tell whether the texts are there, and not because a whole list of parts was printed."""
    return text is not None and all(needle in text for needle in needles) and not _is_printed(text)


def _is_printed(text: str) -> bool:
    return any(f"{quote}text{quote}: {quote}{_TEXTS[0]}{quote}" in text for quote in "'\"")


def _call(arguments: object, content: str | None = "") -> Message:
    function = {"name": "f", "arguments": arguments}
    call = {"id": _CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _writes_call(render: Render, arguments: object) -> bool:
    text = render([_USER, _call(arguments)])
    return text is not None and _ARGUMENT in text


def _writes_less_for_null(render: Render, arguments: object) -> bool:
    """Tell whether null is the right content beside calls: it may also be printed, or end with an error."""
    empty, null = (render([_USER, _call(arguments, content)]) for content in ("", None))
    if null is None or "None" in null or "null" in null:
        return False
    return empty is None or len(null) < len(empty)
