"""Which path a request means: base URLs are the first thing that people get wrong. Pure.

A path is brought into its one form before anything is decided by it: limits, keys, routes, metrics. It is
answered, not redirected, because clients lose bodies on a redirect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

# What kubelets, scrapers, scalers and the operator ask for, none of whom has a key; and what says how to ask.
# /drain has a key of its own, which no client has.
_WITHOUT_KEY = frozenset({"/health", "/ready", "/load", "/drain", "/metrics", "/version", "/openapi.json"})
_REPEATED_V1 = re.compile(r"\A(?:/+v1)+(?=/+v1(?:/|\Z))")
_MODEL = "/v1/models"  # a model's name follows it, which may hold any slashes
_COMPARED = 128  # characters; telling how alike two texts are takes time
_ALIKE = 0.8  # of 1, which is the same: a letter or two are wrong, not another word


def needs_key(path: str) -> bool:
    """Tell whether a path, in its one form, is only for clients with an API key where the server has keys."""
    return path not in _WITHOUT_KEY


class Paths:
    """The paths of one server.

    Args:
        known: those that it answers, in their one form.
        root_path: prefix under which a proxy offers them; "" or like "/llm".
    """

    def __init__(self, known: Iterable[str], root_path: str = "") -> None:
        self.known = frozenset(known)
        self._root_path = root_path

    def meant(self, path: str) -> str:
        """Return a path in its one form.

        The prefix is gone, whether or not the proxy has taken it off; so are repeated slashes, one at the
        end, and a repeated /v1; a missing /v1 is there. A model's name stays as it is.

        Args:
            path: as asked for, percent-decoded once.
        """
        if (plain := _squeezed(path)) in self.known:
            return plain
        rest = _behind(self._root_path, path) if self._root_path else None
        path = path if rest is None else rest or "/"
        path = _REPEATED_V1.sub("", path)
        for prefix in (_MODEL, _MODEL.removeprefix("/v1")):
            name = _behind(prefix, path)
            if name is not None and name.strip("/"):
                return _MODEL + name
        path = _squeezed(path)
        return f"/v1{path}" if f"/v1{path}" in self.known else path

    def nearest(self, path: str) -> str | None:
        """Return the path that a client of an unknown one probably wants, None when none is like it."""
        path = path[-_COMPARED:].lower()
        ends = [known for known in self.known if path.endswith(known.removeprefix("/v1"))]
        alike = ends or get_close_matches(path, sorted(self.known), n=1, cutoff=_ALIKE)
        return self._root_path + max(alike, key=len) if alike else None


def _squeezed(path: str) -> str:
    """Return a path without repeated slashes and without one at its end."""
    return re.sub("//+", "/", path).rstrip("/") or path[:1]


def _behind(prefix: str, path: str) -> str | None:
    """Return what follows a prefix, "" or with its slashes; None where the path has another one."""
    pattern = "".join("/+" + re.escape(part) for part in prefix.split("/")[1:])
    match = re.match(rf"{pattern}(?=/|\Z)", path)
    return None if match is None else path[match.end() :]
