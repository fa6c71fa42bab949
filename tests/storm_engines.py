"""What the engines of pods do in a story: they have requests, crash, and answer the operator in every way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fakeapi.client import get
from fakeapi.kubelet import is_serving
from operator_world import Object, World
from storm_guard import Guard, Load
from storm_start import start_of
from storm_story import BROKEN, Story

Undo = Callable[[], object]


@dataclass
class Manners:
    """How one pod answers, or each.

    Args:
        trouble: why it does not; "" when it does.
        body: what it says instead of its requests; None when it tells them.
        is_older: whether it cannot be told to drain.
    """

    trouble: str = ""
    body: bytes | None = None
    is_older: bool = False


class Engines:
    """A world with pods that are told by a story what to do.

    Args:
        story: what happens.
    """

    def __init__(self, story: Story) -> None:
        self.story = story
        self.world = World(start_of(story))
        surge, unavailable = story.limits
        self.world.apply(rollout={"maxSurge": surge, "maxUnavailable": unavailable})
        # Stories kill the operator more often than once a minute, and its pace is a memory of the process.
        self.world.is_stormy = True
        self.guard = Guard(self.world)
        self._crashing: set[str] = set()
        self._manners: dict[str, Manners] = {}  # by uid; of "" those of all others
        kubelet = self.world.kubelet
        kubelet.is_broken = self._is_broken
        kubelet.in_flight = self._in_flight
        kubelet.unreachable = lambda name: self._manners_of(name).trouble
        kubelet.odd_answer = lambda name: self._manners_of(name).body
        kubelet.is_older = lambda name: self._manners_of(name).is_older
        kubelet.on_told = self.guard.check_told

    def _is_broken(self, pod: Object) -> bool:
        is_wrong = f"--max-model-len={BROKEN}" in pod["spec"]["containers"][0]["args"]
        return is_wrong or pod["metadata"]["uid"] in self._crashing

    def _uid(self, name: str) -> str:
        pod = get(self.world.api, "pods", name)
        assert pod is not None
        return str(pod["metadata"]["uid"])

    def _in_flight(self, name: str) -> int:
        return self.guard.in_flight(self._uid(name))

    def _manners_of(self, name: str) -> Manners:
        return self._manners.get(self._uid(name)) or self._manners.get("") or Manners()

    def picked(self, pick: int) -> Object | None:
        pods = self.world.pods()
        return pods[pick % len(pods)] if pods else None

    def _crash_pod(self, pick: int) -> Undo | None:
        pod = self.picked(pick)
        if pod is None:
            return None
        uid = pod["metadata"]["uid"]
        self._crashing.add(uid)
        return lambda: self._crashing.discard(uid)

    def _keep_busy(self, step_s: float, *counts: int) -> Undo:
        """Requests for those that serve, and for each that begins to: so many, then so many, and so on."""
        self.guard.load = Load(0.0, step_s, counts)
        for pod in self.world.pods():
            if is_serving(pod):
                self.guard.send(pod["metadata"]["uid"])
        return self.guard.calm

    def _answer_late(self, after_s: float) -> Undo:
        self.world.kubelet.answer_s = lambda: after_s
        return lambda: setattr(self.world.kubelet, "answer_s", lambda: 0.0)

    def _answer_nothing(self, pick: int | None, trouble: str) -> Undo | None:
        return self._behave(pick, Manners(trouble=trouble))

    def _answer_nonsense(self, pick: int | None, body: bytes) -> Undo | None:
        return self._behave(pick, Manners(body=body))

    def _age(self, pick: int | None) -> Undo | None:
        return self._behave(pick, Manners(is_older=True))

    def _behave(self, pick: int | None, manners: Manners) -> Undo | None:
        """Let one pod behave like that, or all that have no manners of their own."""
        pod = None if pick is None else self.picked(pick)
        if pick is not None and pod is None:
            return None
        uid = "" if pod is None else pod["metadata"]["uid"]
        self._manners[uid] = manners
        return lambda: self._manners.pop(uid, None)
