"""One pass over one ModelDeployment: snapshot, decide purely, act, report."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from stoker_operator.api import InvalidSpec, salvage
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.cluster.resources import PODS
from stoker_operator.config import OperatorConfig
from stoker_operator.desired import Wanted, held, wanted_replicas
from stoker_operator.observed import Observed
from stoker_operator.plan import Plan, groups, plan, plan_deletion
from stoker_operator.reconcile.act import Actor
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.outcome import Outcome
from stoker_operator.reconcile.pace import FAILED, Pace
from stoker_operator.reconcile.readings import Readings
from stoker_operator.reconcile.report import Reporter
from stoker_operator.reconcile.slow import SlowPods
from stoker_operator.reconcile.wanted import WantedLately
from stoker_operator.retry import Backoff, PassFailed
from stoker_operator.status import status

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# A name that an object without our label holds: no watch tells when it becomes free.
LOOK_AGAIN = Backoff(first_s=0.5, max_s=15.0, jitter=0.0)
# What a pass did shows in the caches at once and brings on the next one; this is for what does not.
ACT_AGAIN = Backoff(first_s=0.01, max_s=30.0, jitter=0.0)
# What goes wrong once and then works is no news: the status tells what has lasted so long.
NEWS_AFTER_S = 0.5
NEWS_AFTER_TRIES = 4


@dataclass
class _Memory:
    """What passes remember of a ModelDeployment.

    Args:
        num_acting: passes in a row that changed something.
        num_blocked: passes in a row that met an object in the way.
        num_unread: passes in a row that could not read what is in the way.
    """

    num_acting: int = 0
    num_blocked: int = 0
    num_unread: int = 0


class Reconciler:
    """Makes the cluster what one ModelDeployment after another asks for.

    Args:
        client: the API.
        caches: what is known of the cluster.
        config: the operator's settings.
        readings: what pods say, and which of them are asked.
        recorder: writes Events.
        clock: the time, for everything that plans and statuses say.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        config: OperatorConfig,
        readings: Readings,
        recorder: EventRecorder,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._caches = caches
        self._config = config
        self._readings = readings
        self._recorder = recorder
        self._clock = clock
        self._pace = Pace(lambda: asyncio.get_running_loop().time())
        self._actor = Actor(client, caches, self._pace)
        self._reporter = Reporter(client, caches, recorder, self._pace)
        self._slow_pods = SlowPods(client, clock)
        self._wanted_lately = WantedLately(config)
        self._memories: dict[Key, _Memory] = {}

    async def __call__(self, key: Key) -> float | None:
        """Run one pass.

        Returns:
            seconds until the next pass is due, None when only an event can change anything.

        Raises:
            PassFailed: a call failed; the status says what is known, and the error when to come back.
            ApiError, ApiUnreachable: the same of a call that has no due time of its own.
        """
        model = self._caches.model(key)
        if model is None:
            self._forget(key)
            return None
        if "deletionTimestamp" in model["metadata"]:
            return await self._leave(key, model)
        try:
            return await self._pass(key, model)
        finally:
            self._caches.turns.done(key)

    async def _pass(self, key: Key, model: Object) -> float | None:
        wanted = self._wanted(key, model)
        looked = await self._actor.look_again(key)
        todo, observed = self._plan(key, model, wanted)
        outcome = looked
        if looked.error is None:
            # A new revision is put on record before all else: what else there is to do follows from whether
            # that worked, and a status between the two would tell nothing.
            first = outcome = await self._actor.act(key, model, todo.records)
            if first.done:
                todo, observed = self._plan(key, model, wanted)
            if first.error is None:
                rest = await self._actor.act(key, model, todo.actions)
                outcome = replace(rest, done=(*first.done, *rest.done))
        is_same = not (outcome.done or outcome.is_unfinished or outcome.error)
        after = observed if is_same else self._caches.observe(key, model, observed.readings)
        warnings, look_s = await self._slow_pods.warnings(key, after)
        memory = self._memories.setdefault(key, _Memory())
        memory.num_unread = memory.num_unread + 1 if looked.error else 0
        if memory.num_unread >= NEWS_AFTER_TRIES or outcome.trouble_s >= NEWS_AFTER_S:
            after = replace(after, refusals=outcome.refusals, failure=outcome.failure)
        if warnings:
            after = replace(after, warnings=warnings)
        told = status(wanted, after, self._config, self._clock(), todo.groups if is_same else None)
        report = await self._reporter.report(key, model, told, outcome.done)
        if looked.error is not None:
            raise looked.error
        waits = (look_s, report.wait_s, todo.requeue_after_s, self._due(key, todo, outcome))
        wait_s = min((wait_s for wait_s in waits if wait_s is not None), default=None)
        error = outcome.error or report.error
        if error is not None:
            raise PassFailed(str(error), FAILED.first_s if wait_s is None else wait_s) from error
        return wait_s

    async def _leave(self, key: Key, model: Object) -> float | None:
        """The garbage collector deletes the children, by our owner references; the budget should not wait."""
        observed = self._caches.observe(key, model)
        outcome = await self._actor.act(key, model, plan_deletion(observed).actions)
        if outcome.error is not None:
            wait_s = FAILED.first_s if outcome.wait_s is None else outcome.wait_s
            raise PassFailed(str(outcome.error), wait_s) from outcome.error
        return outcome.wait_s

    def _forget(self, key: Key) -> None:
        self._caches.forget(key)
        self._wanted_lately.forget(key)
        self._slow_pods.forget(key)
        self._readings.forget(key)
        self._pace.forget(key)
        self._memories.pop(key, None)

    def _wanted(self, key: Key, model: Object) -> Wanted:
        """What should exist; for a spec that cannot be served that is what earlier ones left, kept alive."""
        try:
            return self._wanted_lately(key, model)
        except InvalidSpec as error:
            num_live = sum(group.is_live for group in groups(self._caches.observe(key, model), self._clock()))
            readable = salvage(model)
            return held(readable, error, wanted_replicas(readable, num_live))

    def _plan(self, key: Key, model: Object, wanted: Wanted) -> tuple[Plan, Observed]:
        """Plan with what draining pods said last, and have them told and asked from now on."""
        observed = self._caches.observe(key, model, self._readings.of(key))
        todo = plan(wanted, observed, self._clock())
        pods = {uid: pod for pod in observed.pods if (uid := pod["metadata"]["uid"]) in todo.draining}
        self._readings.ask(key, pods)
        self._caches.turns.go(key, observed.turns)
        return todo, observed

    def _due(self, key: Key, todo: Plan, outcome: Outcome) -> float | None:
        """Seconds until what this pass did or could not do is worth another look."""
        memory = self._memories.setdefault(key, _Memory())
        # A pod in the way is stepped around: nobody waits for its name.
        is_blocked = any(plural != PODS.plural for plural, _ in self._caches.in_the_way(key))
        is_acting = bool(outcome.done or outcome.is_unfinished)
        memory.num_blocked = memory.num_blocked + 1 if is_blocked else 0
        memory.num_acting = memory.num_acting + 1 if is_acting else 0
        waits = [] if outcome.wait_s is None else [outcome.wait_s]
        if outcome.trouble_s < NEWS_AFTER_S and (outcome.refusals or outcome.failure):
            waits.append(NEWS_AFTER_S - outcome.trouble_s + 0.01)
        if is_blocked:
            waits.append(LOOK_AGAIN.delay_s(memory.num_blocked, 0.0))
        if is_acting:
            waits.append(ACT_AGAIN.delay_s(memory.num_acting, 0.0))
        return min(waits, default=None)
