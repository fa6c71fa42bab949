"""Plays stories of random trouble (``storm_story``) in a world, and looks at how they end."""

from __future__ import annotations

import asyncio

from fakeapi.client import delete, everything, get
from fakeapi.kubelet import is_serving
from operator_builders import wanted_of
from operator_world import CONFIG, NAME, Object
from storm_engines import Undo
from storm_story import BROKEN, Step, Story
from storm_troubles import Troubles
from virtual_time import pass_time, run_virtual, until

from stoker_operator.api import labels
from stoker_operator.desired.children import BUDGET

LAST = 8192  # length of the model that ends each story
SETTLE_S, QUIET_S = 1800.0, 40.0
KUBELET_S = 1.0


class Storm(Troubles):
    """One story as it happens.

    Args:
        story: what happens.
    """

    def __init__(self, story: Story) -> None:
        super().__init__(story)
        self._undone: list[Undo] = []

    async def play(self) -> None:
        """The story from its first step to the calm after it."""
        async with self.world.running(kubelet=False):
            kubelet = asyncio.create_task(self.world.kubelet.run(KUBELET_S))
            try:
                for step in self.story.steps:
                    await self._do(step)
                self._heal()
                await self._end()
                assert not kubelet.done(), kubelet.exception()
            finally:
                kubelet.cancel()

    async def _do(self, step: Step) -> None:
        undo = getattr(self, f"_{step.kind}")(*step.args)
        await pass_time(step.gap_s)
        if undo is not None and step.stays:
            self._undone.append(undo)
        elif undo is not None:
            undo()
        self._check()

    def _heal(self) -> None:
        """Nobody disturbs any more."""
        for undo in self._undone:
            undo()
        self.guard.calm()
        for pod in self.world.pods():
            if pod["metadata"]["uid"] in self._hidden and labels.DEPLOYMENT not in _labels(pod):
                delete(self.world.api, "pods", pod["metadata"]["name"])

    async def _end(self) -> None:
        # In a full cluster one that answered keeps its room until the user says otherwise.
        rollout = {"paused": False, "maxSurge": 0, "maxUnavailable": 1}
        if not self.story.slots:
            rollout = {"paused": False}
        self.revive()
        engine = {"engine": {"maxModelLen": LAST}} if self.story.is_edited or self._is_wrong() else {}
        self.world.apply(replicas=self.story.end, suspend=False, rollout=rollout, **engine)
        try:
            await until(self._is_as_wanted, SETTLE_S, step_s=2.0)
        except AssertionError as error:
            raise AssertionError(f"not settled: {self._picture()}") from error
        self._check()
        await pass_time(QUIET_S)
        num_writes = len(self.world.api.writes)
        await pass_time(QUIET_S)
        late = [f"{call.method} {call.path}" for call in self.world.api.writes[num_writes:]]
        assert not late, f"writes without an end: {late}"
        assert self._is_as_wanted(), f"it was settled once: {self._picture()}"
        self._check()

    def _is_wrong(self) -> bool:
        model = get(self.world.api, "modeldeployments", NAME)
        return model is not None and (model["spec"].get("engine") or {}).get("maxModelLen") == BROKEN

    def _check(self) -> None:
        assert not self.guard.problems, "; ".join(self.guard.problems)

    def _is_as_wanted(self) -> bool:
        api, model = self.world.api, get(self.world.api, "modeldeployments", NAME)
        assert model is not None
        if not self.world.is_ready():
            return False
        wanted = wanted_of(model, CONFIG)
        pods = everything(api, "pods")
        fits = [is_serving(pod) and _labels(pod).get(labels.REVISION) == wanted.revision for pod in pods]
        return (
            fits == [True] * self.story.end
            and len(everything(api, "services")) == 1
            and len(everything(api, "poddisruptionbudgets")) == (wanted.child(BUDGET) is not None)
            and [_labels(record).get(labels.REVISION) for record in everything(api, "controllerrevisions")]
            == [wanted.revision]
        )

    def _picture(self) -> Object:
        pods = {
            pod["metadata"]["name"]: (pod["spec"].get("nodeName"), pod["status"].get("phase"), _labels(pod))
            for pod in self.world.pods()
        }
        kinds = ("services", "poddisruptionbudgets", "controllerrevisions")
        children = {
            kind: [child["metadata"]["name"] for child in everything(self.world.api, kind)] for kind in kinds
        }
        return {"pods": pods, **children, "status": self.world.status()}


def play(story: Story) -> Storm:
    """Play a story to its end; raises where something did not hold, the story told."""
    storm = Storm(story)
    try:
        run_virtual(storm.play())
    except Exception as error:
        raise AssertionError(f"{error}\n\n{story}") from error
    return storm


def _labels(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}
