"""The past of a group that failed: what its successor is to know of it.

A single pod that failed stays until its successor starts, and its past stands in it. A group of several would
keep accelerators for as long, so it is taken away at once, and its past is noted before on the record of its
revision. There it stays until a successor says in an annotation whose place it took.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stoker_operator.api import labels
from stoker_operator.observed import Manifest
from stoker_operator.plan.pods import noted_count, noted_counts, noted_time

MAX_NOTED = 100  # of a revision; an annotation's text is limited, and so many failed groups have one cause


@dataclass(frozen=True, slots=True)
class Past:
    """What happened to a group and to those before it.

    Args:
        group: its name.
        num_failures: failures in a row, with its own.
        failed_on: on which nodes, with how many each, the last one last.
        failed_at: when it failed.
    """

    group: str
    num_failures: int
    failed_on: tuple[tuple[str, int], ...]
    failed_at: datetime


def noted_pasts(record: Manifest | None) -> tuple[Past, ...]:
    """Return what a record notes of groups that are gone; what cannot be read is left out."""
    notes = {} if record is None else record["metadata"].get("annotations") or {}
    try:
        entries = json.loads(notes.get(labels.FAILURES) or "[]")
    except (ValueError, RecursionError):
        return ()
    if not isinstance(entries, list):
        return ()
    found = (_read(entry) for entry in entries if isinstance(entry, dict))
    return tuple(past for past in found if past is not None)


def pasts_text(pasts: Iterable[Past]) -> str:
    """Return the annotation that notes them, "" for none."""
    entries = [
        {
            "group": past.group,
            "failures": past.num_failures,
            "failedOn": counts_text(past.failed_on),
            "failedAt": past.failed_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        for past in pasts
    ]
    return json.dumps(entries[:MAX_NOTED], separators=(",", ":")) if entries else ""


def counts_text(counts: Iterable[tuple[str, int]]) -> str:
    """Return "name=count,name=count"."""
    return ",".join(f"{name}={count}" for name, count in counts)


def _read(entry: Mapping[str, Any]) -> Past | None:
    group, failed_at = str(entry.get("group", "")), noted_time(str(entry.get("failedAt", "")))
    num_failures = noted_count(str(entry.get("failures", "")))
    if not group or failed_at is None or not num_failures:
        return None
    failed_on = noted_counts(str(entry.get("failedOn", "")))
    return Past(group, num_failures, tuple(failed_on.items()), failed_at)
