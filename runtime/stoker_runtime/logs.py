"""How both processes log: one JSON object per line on stderr."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

from stoker_runtime.config import LogLevel

# The x-request-id of the HTTP request that is being answered; every line that is logged meanwhile carries it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def add_request_id(record: logging.LogRecord) -> bool:
    """Put the id of the request that is being answered into a line, if there is one. A logging filter."""
    current = request_id.get()
    if current is not None and not hasattr(record, "request_id"):
        record.request_id = current
    return True


def configure(level: LogLevel, process: str) -> None:
    """Send every logger of this process to stderr as JSON lines.

    Args:
        level: the least severe level that is written.
        process: "server", "engine" or "fetch"; a field of every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"process": process},
            timestamp="time",
        )
    )
    handler.addFilter(add_request_id)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def is_configured() -> bool:
    """Whether this process logs JSON lines already."""
    return any(add_request_id in handler.filters for handler in logging.getLogger().handlers)
