"""What a chat's body says to the template besides its messages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stoker_runtime.errors import RequestError
from stoker_runtime.server.history import History
from stoker_runtime.server.protocol import ChatBody, TokenizeBody

# Fields that speak to the model, as variables of its template, with what asks for nothing.
_HINTS: Mapping[str, tuple[object, ...]] = {
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "enable_thinking": (),
    "documents": ([],),
}
_SWITCHES = ("add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How messages are rendered.

    Args:
        add_generation_prompt: end with the opening of the assistant's answer.
        continue_final_message: the last message is left open; excludes the one above.
        extra: further variables of the template.
    """

    add_generation_prompt: bool
    continue_final_message: bool
    extra: Mapping[str, Any]


def chat_options(body: ChatBody | TokenizeBody) -> ChatOptions:
    """Return what a body says.

    `chat_template_kwargs` counts more than fields of the body that mean the same, as with vLLM, and may have
    the two switches as well.
    """
    extra = dict(body.chat_template_kwargs)
    starts, goes_on = (extra.pop(name, getattr(body, name)) for name in _SWITCHES)
    hints = {name: value for name in _HINTS if (value := getattr(body, name, None)) is not None}
    return ChatOptions(
        add_generation_prompt=starts is not False and not goes_on,
        continue_final_message=bool(goes_on),
        extra={**hints, **extra},
    )


def last_answer(history: History) -> str:
    """Return the text of the last message where it is an assistant's, which `echo` puts before the answer."""
    last = history.messages[-1]
    content = last.get("content", "") if last["role"] == "assistant" else ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def without_quiet_hints(body: ChatBody | TokenizeBody, ignored: Iterable[str]) -> list[str]:
    """Return paths that a template did not read, by the client's names, without what asks for nothing.

    Raises:
        RequestError: 400; documents would have changed the answer, and the template has no place for them.
    """
    paths = []
    for path in ignored:
        name = path.removeprefix("chat_template_kwargs.")
        if name == path or name not in _HINTS or name in body.chat_template_kwargs:
            paths.append(path)
        elif getattr(body, name) not in _HINTS[name]:
            paths.append(name)
    if "documents" in paths:
        raise RequestError(
            "`documents` has no place in this model's chat template; put them into a message",
            param="documents",
            code="unsupported_parameter",
        )
    return paths
