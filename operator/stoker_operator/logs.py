"""Logs as JSON lines on stderr, kopf's as well."""

import logging

from pythonjsonlogger.json import JsonFormatter


def configure(level: str) -> None:
    """Send every logger's lines to stderr.

    Args:
        level: debug, info, warning or error.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf logs every event it sees; our own line of a pass says what came of it. Its liveness page is asked
    # every few seconds, which is no news either.
    for name in ("kopf", "aiohttp.access"):
        logging.getLogger(name).setLevel("WARNING" if level == "info" else level.upper())
