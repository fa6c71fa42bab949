"""What the texts of some flags of `serve` stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stoker_runtime.errors import ConfigError

_KEY_VARIABLES = {"STOKER_API_KEY": "--api-key", "STOKER_API_KEY_FILE": "--api-key-file"}


def port(text: str) -> int:
    """Return the port of --port."""
    if text.startswith("tcp://"):
        raise ConfigError(
            f"STOKER_PORT is {text!r}, which Kubernetes set for a Service named stoker; "
            "give --port, or set enableServiceLinks: false on the pod"
        )
    if not text.isdecimal():
        raise ConfigError(f"--port is {text!r}; use 0 to 65535")
    return int(text)


def names(flag: str, values: Sequence[str]) -> tuple[str, ...]:
    """Return what a flag lists: repeated, separated by commas, or as a JSON list, as with vLLM."""
    text = " ".join(values)  # a variable comes in the pieces between its spaces
    if not text.lstrip().startswith("["):
        return tuple(name.strip() for value in values for name in value.split(",") if name.strip())
    try:
        return tuple(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError as error:
        raise ConfigError(f"{flag} is {text!r}; use names, or one JSON list of them") from error


def origins(values: Sequence[str]) -> tuple[str, ...]:
    """Return the origins of --allowed-origins as browsers spell them."""
    return tuple(origin.rstrip("/").lower() for origin in names("--allowed-origins", values))


def methods(values: Sequence[str]) -> tuple[str, ...]:
    """Return the methods of --allowed-methods as requests have them; all unless some are given."""
    return tuple(method.upper() for method in names("--allowed-methods", values)) or ("*",)


def api_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return the keys of --api-key and --api-key-file.

    Raises:
        ConfigError: there are none although there should be: whoever asked for keys must not be served
            without because a Secret is empty.
    """
    for variable, flag in _KEY_VARIABLES.items():
        if variable in os.environ and not os.environ[variable].strip():
            raise ConfigError(f"{variable} is empty, the variable of {flag}; give a key, or unset it")
    if file is None:
        return tuple(given)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ConfigError(f"--api-key-file {file} has no key; write one a line")
    return (*given, *found)
