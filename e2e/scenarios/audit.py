"""What was written to the API server, from its audit log (JSON lines, metadata level)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scenarios.waiting import eventually

WRITES = {"create", "update", "patch", "delete", "deletecollection"}


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the API server answered."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    status: int
    at: datetime


@dataclass
class AuditLog:
    """Reads on from where it was opened."""

    path: Path
    offset: int = 0
    clock: datetime | None = None

    @classmethod
    def from_now(cls, path: Path) -> AuditLog:
        """Return a reader of what is written from this moment on."""
        return cls(path, path.stat().st_size)

    def read(self) -> list[Write]:
        """Return the writes since the last call; moves `clock` to the newest entry of any verb."""
        with self.path.open("rb") as log:
            log.seek(self.offset)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        entries = [json.loads(line) for line in whole.splitlines()]
        for entry in entries:
            at = _time(entry)
            self.clock = at if self.clock is None else max(self.clock, at)
        return [_write(entry) for entry in entries if _is_answered_write(entry)]

    def collect(self, span_s: float) -> list[Write]:
        """Return the writes of the next `span_s` seconds, by the clock of the log itself."""
        writes: list[Write] = []
        started: datetime | None = None

        def has_passed() -> bool:
            nonlocal started
            writes.extend(self.read())
            started = started or self.clock
            return started is not None and self.clock is not None and (self.clock - started).seconds >= span_s

        eventually(f"{span_s:g} s pass in the audit log", has_passed, 60 + 2 * span_s, poll_s=1.0)
        return writes


def _is_answered_write(entry: dict[str, Any]) -> bool:
    return entry["stage"] == "ResponseComplete" and entry["verb"] in WRITES


def _write(entry: dict[str, Any]) -> Write:
    target = entry.get("objectRef", {})
    resource = "/".join(filter(None, (target.get("resource"), target.get("subresource"))))
    return Write(
        user=entry["user"]["username"],
        verb=entry["verb"],
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        status=entry.get("responseStatus", {}).get("code", 0),
        at=_time(entry),
    )


def _time(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["stageTimestamp"])
