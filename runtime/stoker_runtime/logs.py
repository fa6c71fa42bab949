"""How both processes log: one JSON object per line on stderr."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from stoker_runtime.config import LogLevel


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
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
