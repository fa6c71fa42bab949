"""The invariant that every component scenario keeps: few writes a minute that bring nothing about.

A write is progress when it changed what is stored into something that was not stored by a write of the last
minute. Refused and failed writes are none, nor those that change nothing, repeat what somebody undoes, say a
status again in other digits, or count an Event once more.
"""

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fakeapi.core import FakeApi, Write

WINDOW_S = 60.0
MAX_FRUITLESS = 12


def assert_writes_are_bounded(
    api: FakeApi, starts_s: Sequence[float] = (), moves_s: Sequence[float] = ()
) -> None:
    """At most so many fruitless writes for each ModelDeployment within any minute.

    Args:
        api: what was written to.
        starts_s: when an operator process started that knows nothing of the tries of the last one, in order:
            each has a minute of its own.
        moves_s: when pods changed, in order: a status that says again what it said before one of them is no
            repetition.
    """
    for name, writes in fruitless(api, moves_s).items():
        for index, last in enumerate(writes):
            begun_s = max((at for at in starts_s if at <= last.at_s), default=0.0)
            since_s = max(begun_s, last.at_s - WINDOW_S)
            minute = [write for write in writes[: index + 1] if write.at_s > since_s]
            shown = [f"{w.at_s:.2f} {w.call.method} {w.call.path} {w.code}" for w in minute]
            assert len(minute) <= MAX_FRUITLESS, f"{name}: {len(minute)} within a minute: {shown}"


def fruitless(api: FakeApi, moves_s: Sequence[float] = ()) -> dict[str, list[Write]]:
    """Writes without progress by the ModelDeployment that they are for, in their order."""
    result: dict[str, list[Write]] = defaultdict(list)
    seen_at: dict[str, float] = {}
    num_moves = 0  # of pods; the budget follows each of them, back and forth
    for write in api.outcomes:
        if "modeldeployments" in write.call.path and not write.call.path.endswith("/status"):
            continue  # a user's, such as the chart's test: the operator writes no spec
        content = _content(write)
        if content is not None and "poddisruptionbudgets" in write.call.path:
            content += f" after {num_moves} moves"
        if content is not None and write.call.path.endswith("/status"):
            content += f" after {bisect_right(moves_s, write.at_s)} moves"
        num_moves += write.change is not None and write.change.plural == "pods"
        is_new = content is None or write.at_s - seen_at.get(content, -WINDOW_S) >= WINDOW_S
        if content is not None:
            seen_at[content] = write.at_s
        if write.change is None or not is_new:
            result[_owner(write)].append(write)
    return result


def _content(write: Write) -> str | None:
    """What a write says, digits aside; None where each one is something else: pods that come and go."""
    if write.change is None:
        return None
    path, body = write.call.path, json.loads(write.call.body or b"{}")
    if write.change.plural == "pods" and write.call.method in ("POST", "DELETE"):
        return None
    if write.change.plural == "pods":
        return path
    if path.endswith("/status"):
        status = {**body["status"]}
        aspects = [
            (c["type"], c["status"], c["observedGeneration"], c["reason"], _without_digits(c["message"]))
            for c in status.pop("conditions")
        ]
        return repr((path, sorted(status.items()), aspects))
    return repr((write.call.method, path, _stable(body)))


def _stable(body: Any) -> str:
    if body.get("kind") == "Event" or "series" in body:
        return str((body.get("metadata") or {}).get("name", ""))
    return json.dumps(body, sort_keys=True)


def _without_digits(text: str) -> str:
    return re.sub(r"[\w.:-]*\d[\w.:-]*", "#", text)


def _owner(write: Write) -> str:
    parts = write.call.path.split("/")
    body = json.loads(write.call.body or b"{}")
    name = str((body.get("metadata") or {}).get("name") or parts[-1])
    if parts[-1] == "status":
        name = parts[-2]
    if "events" in parts:
        return name.rpartition(".")[0]
    return name.rsplit("-", 2)[0] if "pods" in parts else name
