"""When a person last asked for new pods: the annotation ``stoker.dev/restarted-at`` of a ModelDeployment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stoker_operator.api.labels import RESTARTED_AT

PATH = f"metadata.annotations[{RESTARTED_AT}]"
ADVICE = "must be a time with its zone, such as 2026-03-01T12:00:00Z: correct or remove it"


def restarted_at(obj: Mapping[str, Any]) -> str:
    """Return the newest time that was asked for, in UTC, "" when none ever was.

    The status keeps it: what applies from Git may take back an annotation that is not there, or set it to an
    older time that is, and neither is a wish for yet another restart.

    Raises:
        ValueError: the annotation is no time with a zone.
    """
    text = (obj["metadata"].get("annotations") or {}).get(RESTARTED_AT, "")
    asked = [_time(text)] if text else []
    return _newest([*asked, *_kept(obj)])


def kept_restart(obj: Mapping[str, Any]) -> str:
    """Return the time that the status keeps, "" when there is none."""
    return _newest(_kept(obj))


def _newest(times: list[datetime]) -> str:
    return max(times).astimezone(UTC).isoformat().replace("+00:00", "Z") if times else ""


def _kept(obj: Mapping[str, Any]) -> list[datetime]:
    try:
        return [_time((obj.get("status") or {}).get("restartedAt") or "")]
    except ValueError:
        return []


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no zone")
    return time
