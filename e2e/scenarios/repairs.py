"""How a model that never answered was repaired by an edit while every accelerator is taken. Pure.

Nothing but its own broken pod holds what the new pod needs. So the order of things is: the broken pod lets
go, the new pod is placed, its engine starts, it is ready, a request is answered. The bar: the answer comes at
most SERVES_WITHIN_S after the engine's start.

All times are seconds on one clock. Pods are looked at every now and then, which is finer than the whole
seconds that objects tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scenarios.kube import Object, is_true

SERVES_WITHIN_S = 30.0
ORDER = ("let go", "placed", "started", "ready", "answered")


@dataclass
class Repair:
    """When each thing was first seen.

    Args:
        broken: uid of the pod that never answered.
        edited_s: when the spec was corrected.
    """

    broken: str
    edited_s: float
    seen_s: dict[str, float] = field(default_factory=dict)

    def look(self, at_s: float, pods: list[Object]) -> bool:
        """Note what a list of the model's pods shows; whether one of them is ready by now."""
        for name in _shown(self.broken, pods):
            self.seen_s.setdefault(name, at_s)
        return "ready" in self.seen_s

    def answered(self, at_s: float) -> None:
        """Note that a request was answered."""
        self.seen_s["answered"] = at_s

    def faults(self) -> list[str]:
        """What was not seen, what came in another order, and what broke the bar."""
        missing = [f"never seen: {name}" for name in ORDER if name not in self.seen_s]
        if missing:
            return missing
        times = [self.seen_s[name] for name in ORDER]
        found = [f"not in this order: {self}"] if times != sorted(times) else []
        serves_s = self.seen_s["answered"] - self.seen_s["started"]
        return found + [f"over {SERVES_WITHIN_S:g} s: {self}"] * (serves_s > SERVES_WITHIN_S)

    def __str__(self) -> str:
        since = ", ".join(
            f"{name} {self.seen_s[name] - self.edited_s:.1f} s" for name in ORDER if name in self.seen_s
        )
        text = f"a broken model on a full GPU, after the edit: {since}"
        if "answered" not in self.seen_s or "started" not in self.seen_s:
            return text
        return f"{text}; {self.seen_s['answered'] - self.seen_s['started']:.1f} s from its start"


def _shown(broken: str, pods: list[Object]) -> set[str]:
    old = [pod for pod in pods if pod["metadata"]["uid"] == broken]
    new = [pod for pod in pods if pod["metadata"]["uid"] != broken]
    # What has ended holds nothing any more, even while its object is still there.
    shown = set() if any(_phase(pod) not in ("Succeeded", "Failed") for pod in old) else {"let go"}
    if any("nodeName" in pod["spec"] for pod in new):
        shown.add("placed")
    if any(_is_started(pod) for pod in new):
        shown.add("started")
    if any(is_true(pod, "Ready") for pod in new):
        shown.add("ready")
    return shown


def _phase(pod: Object) -> str | None:
    phase: str | None = pod.get("status", {}).get("phase")
    return phase


def _is_started(pod: Object) -> bool:
    entries = pod.get("status", {}).get("containerStatuses") or []
    return any(entry["name"] == "engine" and "running" in entry.get("state", {}) for entry in entries)
