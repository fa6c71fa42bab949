"""The sandbox in which chat templates run: no way out, and nothing that takes much time or memory at once.

Source: the names and filters a template may count on are those of transformers' chat templates.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_REPEATED = 1_000_000
_MAX_WIDTH = 1000
# A width of four digits, a width that is an argument, or one that is a field of its own.
_LONG_FIELD = re.compile(r"\d{4,}|\*|\{[^{}]*:[^{}]*\{")


class Refusal(jinja2.TemplateError):
    """The template itself says that it does not take these messages."""


class _Generation(Extension):
    """The tag that marks what an assistant generated, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012  the parent declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's own content, in a scope of its own as the original has it."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Environment(ImmutableSandboxedEnvironment):
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
        """Give this thread the whole of its time again."""
        self._thread.deadline_s = time.monotonic() + self._limit_s

    def check(self) -> None:
        """Raise jinja2.TemplateRuntimeError when this thread's time is up."""
        deadline_s: float = getattr(self._thread, "deadline_s", float("inf"))
        if time.monotonic() > deadline_s:
            raise jinja2.TemplateRuntimeError(f"takes longer than {self._limit_s:g} s")

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Check the time first."""
        self.check()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Check the time first."""
        self.check()
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the time and a text's new width first."""
        # The odd names are the parent's: a template may pass a keyword called self.
        __self.check()
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_width(max((value for value in args if isinstance(value, int)), default=0))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Check how wide the fields are."""
        wrapper = super().wrap_str_format(value)
        if wrapper is not None:
            _check_format(value.__self__)
        return wrapper

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check the time and how large the result will be first."""
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
    raise Refusal(message)
