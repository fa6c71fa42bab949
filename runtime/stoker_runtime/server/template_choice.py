"""Which chat template a model is served with: the operator's, the model's own, or one of several it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stoker_runtime.errors import ConfigError
from stoker_runtime.tokenizer_files import Assets

_FOR_SOME_REQUESTS = frozenset(
    {"tool_use", "rag"}
)  # templates that only requests with tools or documents get
_FLAG = "--chat-template"


def choose_template(assets: Assets, given: str | None) -> str | None:
    """Return the Jinja source, or None when the model has none that fits all requests.

    Args:
        assets: of the model.
        given: --chat-template: a file with a template, a template, or the name of one that the model has.

    Raises:
        ConfigError: it is none of these, or the file cannot be read.
    """
    named = assets.template_variants
    if given is None:
        return assets.chat_template if assets.chat_template is not None else _sensible(named)
    if given in named:
        return named[given]
    if "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        names = f", or one of this model's own: {', '.join(sorted(named))}" if named else ""
        raise ConfigError(
            f"{_FLAG} is {given!r}, which cannot be read: {reason}; give a file with a Jinja template, "
            f"the template itself{names}"
        ) from error


def _sensible(named: Mapping[str, str]) -> str | None:
    """Return the one of several templates without a default that is meant for every chat."""
    for name in ("default", "chat"):
        if name in named:
            return named[name]
    ordinary = [name for name in named if name not in _FOR_SOME_REQUESTS] or list(named)
    return named[ordinary[0]] if len(ordinary) == 1 else None


def no_template(assets: Assets) -> str:
    """Return what to tell a client whose messages no template can render."""
    if names := ", ".join(sorted(assets.template_variants)):
        return (
            f"this model has several chat templates, but none for every request: {names}; "
            f"start the server with {_FLAG} and one of these names, or use /v1/completions"
        )
    return f"this model has no chat template; start the server with {_FLAG}, or use /v1/completions"
