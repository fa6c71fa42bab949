"""Control tokens that a client writes into a message, as plain text; the template's own stay what they are.

A message's text reaches the tokenizer inside the template's. So what reads like a control token is marked
before the template sees it, and found again, with its marks, in the text that the template gives. The marks
are gone before anything is encoded, and what stands between two of the template's control tokens is encoded
at once: words next to a marked text become the tokens they would become in any other text.

Source: transformers marks a chat's inputs in this way, with sanitize_control_tokens.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError, nodes
from tokenizers import AddedToken, Tokenizer

from stoker_runtime.errors import RequestError
from stoker_runtime.fim import around
from stoker_runtime.server.template import refusal
from stoker_runtime.server.template_sandbox import Environment

# Unicode says that these are no characters; JSON and Python escape them in the same way.
_START, _END = "\ufdd0", "\ufdd1"
_ESCAPED_START, _ESCAPED_END = "\\ufdd0", "\\ufdd1"
_MARK = re.compile("|".join(map(re.escape, (_START, _END, _ESCAPED_START, _ESCAPED_END))))
_ANCHOR = "\ufdd2"  # a token of its own in the plain tokenizer: what follows it does not begin a text


@dataclass(frozen=True, slots=True)
class _Marked:
    """A rendered text without its marks, and where they were.

    A template that splits texts may have taken a begin from its end.
    """

    text: str
    begins: frozenset[int]
    ends: frozenset[int]
    marks: tuple[int, ...]  # all of them, in order

    def is_clients(self, begin: int, end: int) -> bool:
        """Tell whether a control token is the client's: marked as one, or made of texts from both."""
        inside = bisect_left(self.marks, end) - bisect_right(self.marks, begin)
        return inside > 0 or (begin in self.begins and end in self.ends)


class ControlTokens:
    """Encodes a chat in which control tokens count only where the template wrote them.

    Args:
        tokenizer: of the model; it is copied.
        template: Jinja source. Added tokens that it writes control the model as its special tokens do.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        words = _words(template)
        added = tokenizer.get_added_tokens_decoder()
        control = {
            token_id: token.content
            for token_id, token in added.items()
            if token.special or (token.content in words and not token.content.isspace())
        }
        self._control = frozenset(control)
        # Such a token is also found in what the normalizer makes of a text.
        self._is_normalized = tokenizer.normalizer is not None and any(
            added[token_id].normalized for token_id in control
        )
        longest_first = sorted(control.values(), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._beginnings = tuple({text[:end] for text in control.values() for end in range(1, len(text))})
        self._plain = _plain(tokenizer, self._control)
        self._anchor = self._plain.token_to_id(_ANCHOR)

    def mark(self, value: Any) -> Any:
        """Return JSON in which texts that read like control tokens are marked.

        Raises:
            RequestError: 400; the JSON is nested too deeply.
        """
        try:
            return self._mark(value)
        except RecursionError as error:
            raise refusal("they are nested too deeply") from error

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark_text(without_marks(value))
        if isinstance(value, Mapping):
            return {self._mark(key): self._mark(item) for key, item in value.items()}
        return [self._mark(item) for item in value] if isinstance(value, list) else value

    def _mark_text(self, text: str) -> str:
        spans = [found.span() for found in self._pattern.finditer(text)]
        if self._is_normalized:
            encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
            pairs = zip(encoding.ids, encoding.offsets, strict=True)
            spans = [span for token_id, span in pairs if token_id in self._control]
        parts, end = [], 0
        for begin, after in spans:
            parts += [text[end:begin], _START, text[begin:after], _END]
            end = after
        # The template may put another text right behind this one, which would complete it.
        return "".join([*parts, text[end:], _END if text.endswith(self._beginnings) else ""])

    def encode(self, rendered: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the tokens of a chat that was rendered from marked messages.

        Args:
            rendered: what the template gave.
            add_special_tokens: let the tokenizer add what it adds to a plain prompt.

        Raises:
            RequestError: 400; the tokenizer makes a control token of plain text.
        """
        marked = _unmarked(rendered)
        encoding = self._tokenizer.encode_batch([marked.text], add_special_tokens=False)[0]
        ids: list[int] = list(encoding.ids)
        before, after = around(self._tokenizer) if add_special_tokens else ([], [])
        controls = [i for i, token_id in enumerate(ids) if token_id in self._control]
        written = [i for i in controls if marked.is_clients(*encoding.offsets[i])]
        if not written:
            return [*before, *ids, *after]
        bounds = [-1, *sorted(set(controls) - set(written)), len(ids)]
        made: list[int] = []
        for left, right in pairwise(bounds):
            if bisect_left(written, left) == bisect_left(written, right):
                made += ids[left + 1 : right]
            else:
                begin = 0 if left < 0 else encoding.offsets[left][1]
                end = len(marked.text) if right == len(ids) else encoding.offsets[right][0]
                made += self._encode_plain(marked.text[begin:end], is_first=left < 0)
            made += ids[right : right + 1]
        return [*before, *made, *after]

    def _encode_plain(self, text: str, *, is_first: bool) -> list[int]:
        ids: list[int] = list(
            self._plain.encode(text if is_first else _ANCHOR + text, add_special_tokens=False).ids
        )
        if not is_first and ids[:1] == [self._anchor]:
            del ids[0]
        if found := self._control.intersection(ids):
            name = self._tokenizer.id_to_token(min(found))
            raise RequestError(
                f"`messages` hold the text {name!r}, of which this model's tokenizer always makes a control "
                "token; leave it out",
                param="messages",
                code="invalid_value",
            )
        return ids


def without_marks(text: str) -> str:
    """Return a text as it was before it was marked."""
    return _MARK.sub("", text)


def _words(template: str) -> str:
    """Return all that a template can write of itself; with NUL between, no two texts make a token."""
    try:
        syntax = Environment(limit_s=1.0).parse(template)
    except (TemplateError, RecursionError):
        return ""
    texts = [data.data for data in syntax.find_all(nodes.TemplateData)]
    texts += [const.value for const in syntax.find_all(nodes.Const) if isinstance(const.value, str)]
    return "\0".join(texts)


def _plain(tokenizer: Tokenizer, control: frozenset[int]) -> Tokenizer:
    """Return a copy that takes control tokens for any other text."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["id"] in control
    copy: Tokenizer = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    copy.add_tokens([AddedToken(_ANCHOR, normalized=False)])
    return copy


def _unmarked(rendered: str) -> _Marked:
    parts: list[str] = []
    marks: list[tuple[int, bool]] = []
    begin = length = 0
    for found in _MARK.finditer(rendered):
        parts.append(rendered[begin : found.start()])
        length += len(parts[-1])
        marks.append((length, found[0] in (_START, _ESCAPED_START)))
        begin = found.end()
    parts.append(rendered[begin:])
    return _Marked(
        "".join(parts),
        frozenset(place for place, is_begin in marks if is_begin),
        frozenset(place for place, is_begin in marks if not is_begin),
        tuple(place for place, _ in marks),
    )
