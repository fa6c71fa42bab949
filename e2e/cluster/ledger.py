"""Where the time of a command went: a table at its end, and the same as JSON in the cache.

One `make` runs several processes. Each that is not the last leaves its steps in a file that all of them find
by what make hands down in STOKER_STARTED: the second in which it began, and its process id after the point.
Only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.progress import CACHED, DONE, RECORD, Entry, say
from cluster.versions import cache_dir

STARTED = "STOKER_STARTED"
KEPT = 20
STALE_S = 86_400.0
# A gap between steps that is worth a line of its own.
MIN_OTHER_S = 1.0


@dataclass(frozen=True)
class Ledger:
    """The steps of one command.

    Attributes:
        command: as a person typed it.
        start_s, end_s: in seconds since the epoch.
        outcome: as in `progress.Entry`.
    """

    command: str
    start_s: float
    end_s: float
    outcome: str
    entries: tuple[Entry, ...]

    @property
    def total_s(self) -> float:
        """From the start to the end, in seconds."""
        return max(0.0, self.end_s - self.start_s)

    @property
    def other_s(self) -> float:
        """What no step accounts for, in seconds; steps side by side count once."""
        return max(0.0, self.total_s - covered_s(self.entries))


def covered_s(entries: Iterable[Entry]) -> float:
    """Seconds in which at least one of the steps ran."""
    total, until = 0.0, float("-inf")
    for entry in sorted(entries, key=lambda entry: entry.start_s):
        end = entry.start_s + entry.seconds
        total += max(0.0, end - max(until, entry.start_s))
        until = max(until, end)
    return total


def table(ledger: Ledger) -> str:
    """Render it for a terminal: seconds, then the step, its parts indented below."""
    lines = ["", "Where the time went:"]
    for entry in ledger.entries:
        if entry.outcome == CACHED:
            continue
        mark = "" if entry.outcome == DONE else f"  ({entry.outcome})"
        # A part's seconds stand further right than those that add up.
        lines.append(f"  {'  ' * entry.depth}{entry.seconds:7.1f} s  {entry.title}{mark}")
    if ledger.other_s >= MIN_OTHER_S:
        lines.append(f"  {ledger.other_s:7.1f} s  between the steps")
    lines.append(f"  {ledger.total_s:7.1f} s  in all: {ledger.command}, {ledger.outcome}")
    cached = [entry.title for entry in ledger.entries if entry.outcome == CACHED]
    if cached:
        lines.append(f"  Ready from an earlier run: {', '.join(dict.fromkeys(cached))}")
    return "\n".join(lines)


def folder() -> Path:
    """Where ledgers are kept."""
    return cache_dir() / "ledger"


def started_s(default_s: float) -> float:
    """When the make that runs this process began; the default outside of one."""
    try:
        return float(os.environ[STARTED])
    except (KeyError, ValueError):
        return default_s


def shared_file() -> Path | None:
    """Where the processes of one make leave their steps for the last of them; None outside of one."""
    value = os.environ.get(STARTED, "")
    return folder() / f"run-{value}.jsonl" if re.fullmatch(r"\d+(\.\d+)?", value) else None


def hand_on() -> None:
    """Leave this process' steps to the next one of the same make; where nothing can be written, to nobody."""
    path = shared_file()
    if path is None:
        return
    lines = [json.dumps(dataclasses.asdict(entry)) + "\n" for entry in RECORD.entries()]
    with contextlib.suppress(OSError):  # what a step does with a full disk it says itself
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as shared:
            shared.writelines(lines)


def handed_on() -> list[Entry]:
    """Take over the steps of the processes before this one, which are then gone."""
    path = shared_file()
    if path is None or not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a full disk cut it off
            entries.append(Entry(**json.loads(line)))
    path.unlink()
    return entries


def close(command: str, outcome: str, begun_s: float) -> Ledger:
    """Put the ledger of this command together.

    Args:
        begun_s: when this process began, in seconds since the epoch.
    """
    entries = sorted([*handed_on(), *RECORD.entries()], key=lambda entry: (entry.start_s, entry.depth))
    # make's moment has seconds and no better, so a first step may seem to have begun before it.
    start_s = min([started_s(begun_s), *(entry.start_s for entry in entries)])
    return Ledger(command, start_s, time.time(), outcome, tuple(entries))


def as_json(entry: Entry, start_s: float) -> dict[str, object]:
    """One step as it is kept, with its start in seconds after the command's."""
    after_s = round(max(0.0, entry.start_s - start_s), 1)
    return {**dataclasses.asdict(entry), "start_s": after_s, "seconds": round(entry.seconds, 1)}


def save(ledger: Ledger) -> Path:
    """Keep a ledger as JSON beside the last few others; files of a make that was killed go."""
    folder().mkdir(parents=True, exist_ok=True)
    name = "-".join(ledger.command.split())
    path = folder() / f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(ledger.start_s))}.json"
    content = {
        "command": ledger.command,
        "outcome": ledger.outcome,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ledger.start_s)),
        "total_s": round(ledger.total_s, 1),
        "between_s": round(ledger.other_s, 1),
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "steps": [as_json(entry, ledger.start_s) for entry in ledger.entries],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    forget(sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT])
    now = time.time()
    forget([path for path in folder().glob("run-*.jsonl") if now - path.stat().st_mtime > STALE_S])
    return path


def forget(paths: Sequence[Path]) -> None:
    """Delete files that another run may delete at the same moment."""
    for path in paths:
        path.unlink(missing_ok=True)


def finish(command: str, outcome: str, begun_s: float) -> None:
    """Print the ledger of a command that ends now, and keep it.

    A disk that is full or a folder that belongs to somebody else is told and is no further error.
    """
    ledger = close(command, outcome, begun_s)
    say(table(ledger))
    try:
        path = save(ledger)
    except OSError as error:
        say(f"  (not kept as JSON: {error})")
        return
    say(f"  As JSON: {path}")
