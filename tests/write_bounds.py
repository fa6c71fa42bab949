"""The invariant that every component scenario keeps: few writes a minute that bring nothing about.

A write is progress when it changed what is stored into something that was not stored by a write of the last
minute. Refused and failed writes are none, nor those that change nothing, repeat what somebody undoes, say a
status again in other digits, or count an Event once more.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fakeapi.core import FakeApi, Write

WINDOW_S = 60.0
MAX_FRUITLESS = 12
# First tries of a process that knows nothing of those of the last one, when it is killed again and again.
MAX_BY_RESTART = 4


def assert_writes_are_bounded(api: FakeApi, restarts_s: Sequence[float] = ()) -> None:
    """At most so many fruitless writes for each ModelDeployment within any minute, one restart included.

    Args:
        api: what was written to.
        restarts_s: when another operator process started, in order: the second within a minute and each
            further one may try a few writes more.
    """
    for name, writes in fruitless(api).items():
        for index, last in enumerate(writes):
            minute = [write for write in writes[: index + 1] if write.at_s > last.at_s - WINDOW_S]
            num_restarts = sum(minute[0].at_s < at_s <= last.at_s for at_s in restarts_s)
            most = MAX_FRUITLESS + MAX_BY_RESTART * max(num_restarts - 1, 0)
            shown = [f"{w.at_s:.2f} {w.call.method} {w.call.path} {w.code}" for w in minute]
            assert len(minute) <= most, f"{name}: {len(minute)} within a minute: {shown}"


def fruitless(api: FakeApi) -> dict[str, list[Write]]:
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
