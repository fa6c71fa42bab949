"""Other forms of messages that say the same, for a template that refuses them as they are. Pure.

The forms, in the order in which they are tried; those that change nothing are left out:

1. as they are
2. with ids of tool calls cut to nine letters and digits, as Mistral's templates want them, and with the names
   of tools at their results, as Hermes' do; so in all that follow
3. calls of several tools at once as one after the other, each before its result, as Llama 3 wants them
4. system messages after the first folded into the user's message that follows them
5. all system messages folded so, as Gemma's later templates do themselves
6. neighbouring messages of one role joined by a blank line, alone and together with 4 and 5
7. an empty message of the user's in front of an assistant that speaks first, together with 6
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stoker_runtime.server.chat_history import Message, TemplateShape, calls_of, text_part

_ID_LENGTH = 9
_JOINED_ROLES = ("system", "developer", "user", "assistant")
_SYSTEM_ROLES = ("system", "developer")
_BLANK_LINE = "\n\n"


def forms(messages: Sequence[Message], shape: TemplateShape) -> Iterator[tuple[str, list[Message]]]:
    """Yield each form with a name for the log.

    Args:
        messages: what chat_history.prepare returned.
        shape: of the template.
    """
    tried = [list(messages)]
    yield "as given", tried[0]
    identified = _identified(messages)
    steps = _steps(shape)
    for names in _ORDER:
        form = identified
        for name in names:
            form = steps[name](form)
        if form not in tried:
            tried.append(form)
            yield ", ".join(names) or "ids and names", form


_ORDER: tuple[tuple[str, ...], ...] = (
    (),
    ("one call at a time",),
    ("fold later system",),
    ("fold system",),
    ("join",),
    ("fold later system", "join"),
    ("fold system", "join"),
    ("user first", "join"),
    ("user first", "fold later system", "join"),
    ("user first", "fold system", "join"),
)


def _steps(shape: TemplateShape) -> dict[str, Callable[[Sequence[Message]], list[Message]]]:
    empty: str | list[Any] = [] if "user" in shape.list_roles else ""
    return {
        "one call at a time": _one_call_at_a_time,
        "fold later system": lambda messages: _fold_system(messages, keep_first=True),
        "fold system": lambda messages: _fold_system(messages, keep_first=False),
        "join": _join_neighbours,
        "user first": lambda messages: _user_first(messages, empty),
    }


def _identified(messages: Sequence[Message]) -> list[Message]:
    """Give tool calls short ids, and their results the names of the tools as well."""
    names = {
        call.get("id"): call["function"].get("name") for message in messages for call in _functions(message)
    }
    made = []
    for message in messages:
        changed = dict(message)
        call_id = message.get("tool_call_id")
        if isinstance(call_id, str):
            changed["tool_call_id"] = _short_id(call_id)
            if isinstance(names.get(call_id), str):
                changed.setdefault("name", names[call_id])
        if calls := calls_of(message):
            changed["tool_calls"] = [
                {**call, "id": _short_id(call["id"])} if isinstance(call.get("id"), str) else call
                for call in calls
            ]
        made.append(changed)
    return made


def _functions(message: Message) -> list[Mapping[str, Any]]:
    return [call for call in calls_of(message) if isinstance(call.get("function"), Mapping)]


def _one_call_at_a_time(messages: Sequence[Message]) -> list[Message]:
    made: list[Message] = []
    waiting = list(messages)
    while waiting:
        message = waiting.pop(0)
        calls = calls_of(message)
        if len(calls) < 2:
            made.append(message)
            continue
        num_results = next((i for i, result in enumerate(waiting) if result["role"] != "tool"), len(waiting))
        results, waiting = waiting[:num_results], waiting[num_results:]
        for call in calls:
            made.append({**message, "tool_calls": [call]})
            message = {**message, "content": ""}
            made += [result for result in results if result.get("tool_call_id") == call.get("id")]
        ids = [call.get("id") for call in calls]
        made += [result for result in results if result.get("tool_call_id") not in ids]
    return made


def _short_id(call_id: str) -> str:
    return re.sub("[^A-Za-z0-9]", "", call_id)[-_ID_LENGTH:].rjust(_ID_LENGTH, "0")


def _fold_system(messages: Sequence[Message], *, keep_first: bool) -> list[Message]:
    """Put system messages in front of the next user message's content, or make them one at the end."""
    folded: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message["role"] in _SYSTEM_ROLES and (folded or not keep_first):
            waiting.append(message)
        elif message["role"] == "user" and waiting:
            folded.append({**message, "content": _joined([*waiting, message])})
            waiting = []
        else:
            folded.append(message)
    if waiting:
        folded.append({"role": "user", "content": _joined(waiting)})
    return folded


def _join_neighbours(messages: Sequence[Message]) -> list[Message]:
    together: list[Message] = []
    for message in messages:
        last = together[-1] if together else None
        if last is not None and last["role"] == message["role"] and _may_join(last) and _may_join(message):
            together[-1] = {**last, **message, "content": _joined([last, message])}
        else:
            together.append(message)
    return together


def _may_join(message: Message) -> bool:
    return message["role"] in _JOINED_ROLES and not message.get("tool_calls")


def _user_first(messages: Sequence[Message], empty: str | list[Any]) -> list[Message]:
    first = next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM_ROLES), None)
    if first is None or messages[first]["role"] != "assistant":
        return list(messages)
    return [*messages[:first], {"role": "user", "content": empty}, *messages[first:]]


def _joined(messages: Sequence[Message]) -> str | list[Any]:
    """Return the contents of several messages as one, with a blank line between those that say something."""
    contents = [message["content"] for message in messages if message["content"]]
    if all(isinstance(content, str) for content in contents):
        return _BLANK_LINE.join(contents)
    parts: list[Any] = []
    for content in contents:
        added = [text_part(content)] if isinstance(content, str) else list(content)
        if parts and isinstance(added[0], Mapping) and isinstance(added[0].get("text"), str):
            added[0] = {**added[0], "text": _BLANK_LINE + added[0]["text"]}
        parts += added
    return parts
