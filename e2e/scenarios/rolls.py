"""How long a rolling update of busy pods took, and whether that was its work or waiting. Pure.

The bar: a rolling update of busy pods takes at most FACTOR times its longest request and its starts. With
maxSurge 1 and maxUnavailable 0 the new pods start one after the other: the next one is made when the one
before is ready and an old pod has left the Service for it. Old pods finish their requests beside the next
start. So the least that a rolling update takes is all starts and, after the last, the longest request that
was in flight and the `spec.service.drainSeconds` that a pod stays in any case. What Kubernetes needs to see a
container end, and the operator to ask once a second, has to fit into the rest.

A drain that waits for its grace period would be hidden beside long starts. So each drain, from when the pod
left the Service until it is gone and its devices are free, has a limit of its own: FACTOR times the longest
request that was in flight meanwhile and drainSeconds. Who closes kept connections stays within it, and who
waits until clients do so does not: see docs/decisions/0011-draining.md.

Requests are those of all pods, since clients behind a Service do not know who answers. All times are seconds
on one clock. Pods are looked at every now and then, which is finer than the whole seconds that objects tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scenarios.kube import Object, is_true

FACTOR = 1.5
DRAINING_SINCE = "stoker.dev/draining-since"


@dataclass(frozen=True, slots=True)
class Sighting:
    """The names of a model's pods at one moment; those in `draining` or `deleted` are there still."""

    at_s: float
    pods: frozenset[str]
    ready: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()

    def is_over(self, old: frozenset[str]) -> bool:
        """Whether the old pods have gone and all others are ready."""
        return not old & self.pods and self.pods == self.ready


@dataclass(frozen=True, slots=True)
class Request:
    """When one request was in flight."""

    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """One new pod, from its creation until it was ready; None: it was taken away before."""

    pod: str
    took_s: float | None


@dataclass(frozen=True, slots=True)
class Drain:
    """One old pod, from when it left the Service.

    Attributes:
        pod: its name.
        deleted_s: seconds until its deletion was asked for; None: nobody looked before it was gone.
        took_s: seconds until it was gone; None: it went without a drain.
        longest_s: the longest of all requests that were in flight meanwhile, 0 when none was.
    """

    pod: str
    deleted_s: float | None
    took_s: float | None
    longest_s: float


@dataclass(frozen=True, slots=True)
class Roll:
    """One rolling update.

    Attributes:
        took_s: from the edit until the old pods had gone and all new ones were ready.
        starts: the new pods in the order of their creation.
        drains: the old pods in the order in which they were gone.
        longest_s: the longest of all requests that were in flight meanwhile, 0 when none was.
        drain_seconds: spec.service.drainSeconds.
    """

    took_s: float
    starts: tuple[Start, ...]
    drains: tuple[Drain, ...]
    longest_s: float
    drain_seconds: float

    @property
    def least_s(self) -> float:
        """What its starts, one after the other, and its longest request after them take."""
        return sum(start.took_s or 0.0 for start in self.starts) + self.longest_s + self.drain_seconds

    def faults(self) -> list[str]:
        """What breaks the bar, or keeps it from saying anything; nothing when it holds."""
        found = [f"{start.pod} was never ready" for start in self.starts if start.took_s is None]
        if self.took_s > FACTOR * self.least_s:
            found.append(f"{self.took_s:.1f} s are over {FACTOR:g} x {self.least_s:.1f} s")
        for drain in self.drains:
            least_s = drain.longest_s + self.drain_seconds
            if drain.took_s is None:
                found.append(f"{drain.pod} went without a drain")
            elif not drain.longest_s:
                found.append(f"{drain.pod} drained while no request was in flight")
            elif drain.took_s > FACTOR * least_s:
                found.append(
                    f"{drain.pod} drained for {drain.took_s:.1f} s, over {FACTOR:g} x {least_s:.1f} s"
                )
        return found

    def __str__(self) -> str:
        starts = " + ".join(_text(start.took_s) for start in self.starts)
        drains = ", ".join(f"{_text(drain.took_s)} ({_text(drain.deleted_s)})" for drain in self.drains)
        ratio = self.took_s / self.least_s if self.least_s else float("inf")
        return (
            f"rolling update of {len(self.drains)} busy pods: {self.took_s:.1f} s, {ratio:.2f} x "
            f"{self.least_s:.1f} s (starts {starts} s, longest request {self.longest_s:.1f} s, drainSeconds "
            f"{self.drain_seconds:g}); drains until gone (until deleted) {drains} s"
        )


def sighting(at_s: float, pods: list[Object]) -> Sighting:
    """Keep of a model's pods what matters here."""
    draining = [pod for pod in pods if DRAINING_SINCE in (pod["metadata"].get("annotations") or {})]
    return Sighting(
        at_s,
        pods=_names(pods),
        ready=_names(pod for pod in pods if is_true(pod, "Ready")),
        draining=_names(draining),
        deleted=_names(pod for pod in pods if "deletionTimestamp" in pod["metadata"]),
    )


def measure(
    began_s: float, sightings: Sequence[Sighting], requests: Iterable[Request], drain_seconds: float
) -> Roll:
    """Add up one rolling update.

    Args:
        began_s: when the spec was edited.
        sightings: in order of time; the first is from before the edit and shows the old pods.
        requests: all that may have been in flight meanwhile.
        drain_seconds: spec.service.drainSeconds.

    Raises:
        ValueError: the last sighting does not show the end of a rolling update.
    """
    old = sightings[0].pods
    if not sightings[-1].is_over(old):
        raise ValueError(f"the rolling update is not over: {sightings[-1]}")
    num_before = max(index for index, seen in enumerate(sightings) if not seen.is_over(old)) + 1
    ended_s = sightings[num_before].at_s
    in_flight = tuple(requests)
    new = frozenset[str]().union(*(seen.pods for seen in sightings)) - old
    starts = [_start(sightings, pod) for pod in new]
    drains = [_drain(sightings, pod, in_flight) for pod in old]
    return Roll(
        took_s=ended_s - began_s,
        starts=tuple(start for _, start in sorted(starts, key=_time_and_name)),
        drains=tuple(drain for _, drain in sorted(drains, key=_time_and_name)),
        longest_s=_longest(in_flight, began_s, ended_s),
        drain_seconds=drain_seconds,
    )


def _start(sightings: Sequence[Sighting], pod: str) -> tuple[float, Start]:
    """Return when the pod was made, and its start."""
    created_s = next(seen.at_s for seen in sightings if pod in seen.pods)
    ready_s = _first(sightings, pod, lambda seen: seen.ready)
    return created_s, Start(pod, _span(created_s, ready_s))


def _drain(sightings: Sequence[Sighting], pod: str, requests: Sequence[Request]) -> tuple[float, Drain]:
    """Return when the pod was gone, and its drain."""
    gone_s = next(seen.at_s for seen in sightings if pod not in seen.pods)
    left_s = _first(sightings, pod, lambda seen: seen.draining)
    deleted_s = _first(sightings, pod, lambda seen: seen.deleted)
    longest_s = _longest(requests, gone_s if left_s is None else left_s, gone_s)
    return gone_s, Drain(pod, _span(left_s, deleted_s), _span(left_s, gone_s), longest_s)


def _time_and_name(found: tuple[float, Start | Drain]) -> tuple[float, str]:
    return found[0], found[1].pod


def _first(
    sightings: Sequence[Sighting], pod: str, among: Callable[[Sighting], frozenset[str]]
) -> float | None:
    return next((seen.at_s for seen in sightings if pod in among(seen)), None)


def _span(begin_s: float | None, end_s: float | None) -> float | None:
    return None if begin_s is None or end_s is None else end_s - begin_s


def _longest(requests: Iterable[Request], begin_s: float, end_s: float) -> float:
    """Return the length of the longest request that was in flight at any time of the span."""
    return max(
        (
            request.ended_s - request.started_s
            for request in requests
            if request.started_s < end_s and request.ended_s > begin_s
        ),
        default=0.0,
    )


def _names(pods: Iterable[Object]) -> frozenset[str]:
    return frozenset(pod["metadata"]["name"] for pod in pods)


def _text(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.1f}"
