"""One pass over one ModelDeployment: snapshot, decide purely, act, report."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from stoker_operator.api import InvalidSpec, parse, salvage
from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import NotFound
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.cluster.inflight import InFlightReader
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS, PODS
from stoker_operator.config import OperatorConfig
from stoker_operator.desired import Wanted, desired, held
from stoker_operator.observed import Failure, Observed, Refusal
from stoker_operator.plan import Action, Plan, groups, plan
from stoker_operator.profiles import profile_of
from stoker_operator.reconcile.act import ACT_AGAIN, Actor, Outcome
from stoker_operator.reconcile.caches import Caches, Key
from stoker_operator.reconcile.drains import Drains
from stoker_operator.reconcile.slow import SlowPods
from stoker_operator.retry import Backoff
from stoker_operator.status import events, status

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# Nothing tells us when a quota grew, a policy changed or a name became free. The first looks come soon: in a
# new namespace pods are refused for the moment until its service account is there.
LOOK_AGAIN = Backoff(first_s=0.5, max_s=15.0, jitter=0.0)
# What goes wrong once and then works is no news: the status tells what has lasted so long.
NEWS_AFTER = timedelta(seconds=0.5)


@dataclass
class _Memory:
    """What passes remember of a ModelDeployment.

    Args:
        num_acting: passes in a row that changed something.
        num_blocked: passes in a row that were kept from it.
        troubled_since: when the first of the passes in a row was that a call went wrong in.
    """

    num_acting: int = 0
    num_blocked: int = 0
    troubled_since: datetime | None = None


class Reconciler:
    """Makes the cluster what one ModelDeployment after another asks for.

    Args:
        client: the API.
        caches: what is known of the cluster.
        config: the operator's settings.
        in_flight: tells pods to drain and asks them for their requests.
        recorder: writes Events.
        clock: the time, for everything that plans and statuses say.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        config: OperatorConfig,
        in_flight: InFlightReader,
        recorder: EventRecorder,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._caches = caches
        self._config = config
        self._drains = Drains(in_flight, clock)
        self._recorder = recorder
        self._clock = clock
        self._actor = Actor(client, caches)
        self._slow_pods = SlowPods(client, clock)
        self._memories: dict[Key, _Memory] = {}

    async def __call__(self, key: Key) -> float | None:
        """Run one pass.

        Returns:
            seconds until the next pass is due, None when only an event can change anything.

        Raises:
            ApiError, ApiUnreachable: a call failed that may work later; the status says what is known.
        """
        model = self._caches.model(key)
        if model is None or "deletionTimestamp" in model["metadata"]:
            # The garbage collector deletes the children: what they need for that are our owner references.
            self._caches.forget(key)
            self._slow_pods.forget(key)
            self._actor.forget(key)
            self._drains.forget(key)
            self._memories.pop(key, None)
            return None
        wanted = self._wanted(key, model)
        looked = await self._actor.look_again(key)
        todo, observed = await self._plan(key, model, wanted)
        outcome = looked if looked.error else await self._actor.act(key, model, todo.actions)
        refusals, failure = self._news(key, outcome)
        after = self._caches.observe(key, model, observed.readings)
        warnings, look_s = await self._slow_pods.warnings(key, after)
        after = replace(after, refusals=refusals, failure=failure, warnings=warnings)
        await self._report(model, status(wanted, after, self._config, self._clock()), outcome.done)
        if outcome.error is not None:
            raise outcome.error
        waits = (look_s, todo.requeue_after_s, self._due(key, todo, outcome))
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _wanted(self, key: Key, model: Object) -> Wanted:
        """What should exist; for a spec that cannot be served that is what earlier ones left, kept alive."""
        try:
            parsed = parse(model)
        except InvalidSpec as error:
            num_live = sum(group.is_live for group in groups(self._caches.observe(key, model), self._clock()))
            return held(salvage(model, num_live), error)
        try:
            return desired(parsed, self._config)
        except InvalidSpec as error:
            return held(parsed, error)

    async def _plan(self, key: Key, model: Object, wanted: Wanted) -> tuple[Plan, Observed]:
        """Plan; when pods drain, tell them, ask for their requests in flight and plan with that."""
        observed = self._caches.observe(key, model)
        todo = plan(wanted, observed, self._clock())
        if not todo.draining:
            self._drains.forget(key)
            return todo, observed
        pods = {uid: pod for pod in observed.pods if (uid := pod["metadata"]["uid"]) in todo.draining}
        readings = await self._drains.readings(key, pods, profile_of(wanted.model.spec))
        observed = self._caches.observe(key, model, readings)
        return plan(wanted, observed, self._clock()), observed

    async def _report(self, model: Object, wanted: Object, done: tuple[Action, ...]) -> None:
        """Write the status if it changed, then what happened as Events."""
        before = model.get("status") or {}
        if wanted != before:
            # To /status a uid is no precondition, and of another object of that name all this would be a lie.
            metadata = {name: model["metadata"][name] for name in ("name", "namespace", "resourceVersion")}
            body = {
                "apiVersion": MODEL_DEPLOYMENTS.api_version,
                "kind": MODEL_DEPLOYMENTS.kind,
                "metadata": metadata,
                "status": wanted,
            }
            try:
                written = await self._client.apply(MODEL_DEPLOYMENTS, body, "status")
            except NotFound:
                logger.info("the ModelDeployment was deleted meanwhile", extra={"key": metadata["name"]})
                return
            self._caches.stores[MODEL_DEPLOYMENTS].put(written)
        for event in events(before, wanted, done):
            await self._recorder.record(model, event)

    def _news(self, key: Key, outcome: Outcome) -> tuple[tuple[Refusal, ...], Failure | None]:
        """What went wrong, if it has lasted: the status of a first try says nothing of it."""
        memory = self._memory(key)
        if not (outcome.refusals or outcome.failure):
            memory.troubled_since = None
            return (), None
        now = self._clock()
        memory.troubled_since = memory.troubled_since or now
        has_lasted = now - memory.troubled_since >= NEWS_AFTER
        return (outcome.refusals, outcome.failure) if has_lasted else ((), None)

    def _due(self, key: Key, todo: Plan, outcome: Outcome) -> float | None:
        """Seconds until what this pass did or could not do is worth another look."""
        memory = self._memory(key)
        # A pod in the way is stepped around: nobody waits for its name.
        names = [plural for plural, _ in self._caches.in_the_way(key) if plural != PODS.plural]
        is_blocked = bool(outcome.refusals or names)
        is_acting = bool(outcome.done or (todo.actions and not is_blocked and outcome.wait_s is None))
        memory.num_blocked = memory.num_blocked + 1 if is_blocked else 0
        memory.num_acting = memory.num_acting + 1 if is_acting else 0
        waits = [] if outcome.wait_s is None else [outcome.wait_s]
        if is_blocked:
            waits.append(LOOK_AGAIN.delay_s(memory.num_blocked, 0.0))
        if is_acting:
            waits.append(ACT_AGAIN.delay_s(memory.num_acting, 0.0))
        return min(waits, default=None)

    def _memory(self, key: Key) -> _Memory:
        return self._memories.setdefault(key, _Memory())
