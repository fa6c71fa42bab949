"""A model's chat template: untrusted code from a model file, rendered in a sandbox with limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta

from stoker_runtime.errors import RequestError
from stoker_runtime.server.chat_forms import forms
from stoker_runtime.server.chat_history import Message, joined, prepare, text_part
from stoker_runtime.server.template_probe import probe
from stoker_runtime.server.template_sandbox import Environment, Refusal
from stoker_runtime.server.template_watch import unread, watched

RENDER_LIMIT_S = 5.0
MAX_RENDERED_CHARS = 16 * 1024**2
_MAX_ROLES = 20
# Behind the final message's text, to find where it ends; its space shows whether the template trims.
# Source: transformers does it so.
_END_MARK = "StokerContinuesFromHere "


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text.

    Args:
        text: all of it.
        ignored: paths of what the client sent and the template does not read: "messages[].name".
        prefix: the text of the final message where that is continued, as it stands at the prompt's end.
        form: of the messages that the template took, see chat_forms.
    """

    text: str
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    form: str = "as given"


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        variables: what the template sees besides the messages, such as bos_token.
        limit_s: longest time a rendering may take.
        max_chars: longest text it may give.
        now: the local time, for templates that tell the model the date.

    Raises:
        jinja2.TemplateError: the source is no template.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        *,
        limit_s: float = RENDER_LIMIT_S,
        max_chars: int = MAX_RENDERED_CHARS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._environment = Environment(limit_s)
        self._environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._template = self._environment.from_string(source)
        syntax = self._environment.parse(source)
        self._reads = meta.find_undeclared_variables(syntax)
        # Templates ask whether they are none rather than whether they are defined.
        self._variables = {"tools": None, "documents": None, **variables}
        self._max_chars = max_chars
        self._environment.start()
        self._shape = probe(self._probed, syntax)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Return the prompt's text.

        Args:
            messages: role and content of each, and whatever else the client gave.
            add_generation_prompt: end with the opening of the assistant's answer.
            continue_final_message: end with the final message's text instead, for the model to go on with.
            extra: further variables, such as enable_thinking. Null is as good as nothing.

        Raises:
            RequestError: 400; the template refuses these messages in every form, takes too long, gives too
                much text, or does not write the message that is to be continued.
        """
        extra = {name: value for name, value in (extra or {}).items() if value is not None}
        add_generation_prompt = add_generation_prompt and not continue_final_message
        variables = {**self._variables, **extra, "add_generation_prompt": add_generation_prompt}
        prepared = prepare(messages, self._shape)
        final = joined(prepared[-1]["content"], "") if continue_final_message else None
        if final is not None:
            prepared[-1] = _marked(prepared[-1])
        text, form, seen = self._rendered(prepared, variables)
        paths = unread(messages, seen)
        paths += [f"chat_template_kwargs.{name}" for name in sorted(extra.keys() - self._reads)]
        if final is None:
            return Rendered(text, tuple(paths), form=form)
        text, prefix = _opened(text, final)
        return Rendered(text, tuple(paths), prefix, form)

    def _rendered(
        self, messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> tuple[str, str, list[Message]]:
        """Return the text of the first form that the template takes, the form's name and what was read."""
        first: Refusal | None = None
        self._environment.start()
        for name, form in forms(messages, self._shape):
            seen = watched(form)
            try:
                return self._text(variables, seen), name, seen
            except Refusal as error:
                first = first or error
            # A template is foreign code over the client's data and may raise anything.
            except Exception as error:
                raise refusal(first or error) from error
        assert first is not None
        raise self._refused(first, messages) from first

    def _refused(self, cause: Refusal, messages: Sequence[Message]) -> RequestError:
        roles = [str(message["role"]) for message in messages]
        if "tool" in roles and not self._shape.tool_results:
            return refusal(f"it takes no tool results; it says: {cause}")
        more = ", ..." if len(roles) > _MAX_ROLES else ""
        return refusal(f"{cause} (the roles are {', '.join(roles[:_MAX_ROLES])}{more})")

    def _probed(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            return self._text({**self._variables, "add_generation_prompt": False}, messages)
        # Whatever it raises, it does not take them.
        except Exception:
            return None

    def _text(self, variables: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
        parts: list[str] = []
        num_chars = 0
        for part in self._template.generate(variables, messages=list(messages)):
            self._environment.check()
            parts.append(part)
            num_chars += len(part)
            if num_chars > self._max_chars:
                raise jinja2.TemplateRuntimeError(f"gives more than {self._max_chars} characters")
        return "".join(parts)


def refusal(cause: BaseException | str) -> RequestError:
    """Return the error of a request whose messages were not rendered."""
    return RequestError(
        f"the model's chat template does not take these messages: {str(cause) or type(cause).__name__}",
        param="messages",
        code="invalid_value",
    )


def _marked(message: Message) -> Message:
    content = message["content"]
    if not isinstance(content, list):
        return {**message, "content": (content or "") + _END_MARK}
    texts = [
        i for i, part in enumerate(content) if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ]
    if not texts:
        return {**message, "content": [*content, text_part(_END_MARK)]}
    last = texts[-1]
    ended = {**content[last], "text": content[last]["text"] + _END_MARK}
    return {**message, "content": [*content[:last], ended, *content[last + 1 :]]}


def _opened(text: str, final: str) -> tuple[str, str]:
    """Return the text up to the final message's end, and that message's text as it stands there.

    Raises:
        RequestError: 400; it does not stand there, because the template leaves it out or changes it.
    """
    mark = _END_MARK.rstrip()
    end = text.rfind(mark)
    prompt = text[: max(end, 0)]
    if end < 0 or not "".join(prompt.split()).endswith("".join(final.split())):
        raise RequestError(
            "the final message cannot be continued, because the model's chat template does not write it as "
            "it is; leave `continue_final_message` out",
            param="continue_final_message",
            code="invalid_value",
        )
    if not text.startswith(_END_MARK, end):
        prompt = prompt.rstrip()  # the template trims what it writes
    kept = (final, final.lstrip(), final.rstrip())
    return prompt, next((prefix for prefix in kept if prompt.endswith(prefix)), final.strip())
