"""A model's chat template: untrusted code from a model file, rendered in a sandbox with limits.

Source: the names and filters a template may count on are those of transformers' chat templates.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stoker_runtime.errors import RequestError

RENDER_LIMIT_S = 5.0
MAX_RENDERED_CHARS = 16 * 1024**2
_MAX_REPEATED = 1_000_000
_MAX_WIDTH = 1000
# A width of four digits, a width that is an argument, or one that is a field of its own.
_LONG_FIELD = re.compile(r"\d{4,}|\*|\{[^{}]*:[^{}]*\{")


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
        self._environment = _Environment(limit_s)
        self._environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._template = self._environment.from_string(source)
        self._reads = meta.find_undeclared_variables(self._environment.parse(source))
        # Templates ask whether they are none rather than whether they are defined.
        self._variables = {"tools": None, "documents": None, **variables}
        self._max_chars = max_chars
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt's text.

        A developer's message is a system message to a template that does not know the role.

        Args:
            messages: role and content of each, and name where the client gave one.
            add_generation_prompt: end with the opening of the assistant's answer.
            extra: further variables, such as enable_thinking.

        Raises:
            RequestError: 400; the template refuses these messages, takes too long, gives too much text, or
                does not look at something that the client gave.
        """
        unread = sorted(set(extra or {}) - self._reads)
        if unread:
            raise RequestError(
                f"`chat_template_kwargs` sets {unread[0]!r}, which this model's chat template does not read",
                param="chat_template_kwargs",
                code="invalid_value",
            )
        if not self._knows_developer:
            messages = [
                {**message, "role": "system"} if message["role"] == "developer" else message
                for message in messages
            ]
        variables = {
            **self._variables,
            **(extra or {}),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._text(variables, messages)
        named = next((index for index, message in enumerate(messages) if "name" in message), None)
        if named is not None and text == self._text(variables, [_nameless(message) for message in messages]):
            param = f"messages[{named}].name"
            raise RequestError(
                f"`{param}` has no effect with this model's chat template; leave it out",
                param=param,
                code="invalid_value",
            )
        return text

    def _text(self, variables: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
        parts: list[str] = []
        num_chars = 0
        self._environment.start()
        try:
            for part in self._template.generate(variables, messages=[dict(message) for message in messages]):
                self._environment.check()
                parts.append(part)
                num_chars += len(part)
                if num_chars > self._max_chars:
                    raise jinja2.TemplateRuntimeError(f"gives more than {self._max_chars} characters")
        # A template is foreign code over the client's data and may raise anything.
        except Exception as error:
            raise refusal(error) from error
        return "".join(parts)


def refusal(cause: BaseException) -> RequestError:
    """Return the error of a request whose messages were not rendered."""
    return RequestError(
        f"the model's chat template does not take these messages: {str(cause) or type(cause).__name__}",
        param="messages",
        code="invalid_value",
    )


def _nameless(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "name"}


class _Generation(Extension):
    """The tag that marks what an assistant generated, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012  the parent declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's own content, in a scope of its own as the original has it."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Counts time at every attribute, item and call, and refuses to multiply texts to a huge size."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], autoescape=False
        )
        self._limit_s = limit_s
        self._thread = threading.local()
        # Filters make large texts out of small ones without a call that the sandbox sees.
        self.filters |= {"tojson": _tojson, "center": _center, "indent": _indent, "format": _format}
        self.globals["raise_exception"] = _raise_exception
        del self.globals["lipsum"]

    def start(self) -> None:
        self._thread.deadline_s = time.monotonic() + self._limit_s

    def check(self) -> None:
        deadline_s: float = getattr(self._thread, "deadline_s", float("inf"))
        if time.monotonic() > deadline_s:
            raise jinja2.TemplateRuntimeError(f"takes longer than {self._limit_s:g} s")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check()
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The odd names are the parent's: a template may pass a keyword called self.
        __self.check()
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_width(max((value for value in args if isinstance(value, int)), default=0))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is not None:
            _check_format(value.__self__)
        return wrapper

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check()
        is_number = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*" and not is_number:
            size, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(times, int) or len(size) * times > _MAX_REPEATED:
                raise jinja2.TemplateRuntimeError("repeats a text too often")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "**" and not (is_number and abs(left) <= 1024 and abs(right) <= 64):
            raise jinja2.TemplateRuntimeError("takes too high a power")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter: models read it as it is."""
    _check_width(indent or 0)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _center(value: str, width: int = 80) -> str:
    _check_width(width)
    return filters.do_center(value, width)


def _indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _check_width(len(width) if isinstance(width, str) else width)
    return filters.do_indent(value, width, first, blank)


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_format(value)
    return filters.do_format(value, *args, **kwargs)


def _check_width(width: int) -> None:
    if width > _MAX_WIDTH:
        raise jinja2.TemplateRuntimeError(f"pads text to {width} characters")


def _check_format(form: str) -> None:
    if _LONG_FIELD.search(form):
        raise jinja2.TemplateRuntimeError(f"formats with too wide a field: {form!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
