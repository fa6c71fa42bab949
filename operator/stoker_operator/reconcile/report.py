"""Tells what a pass found and did: the status, where it differs, and Events."""

import logging
from dataclasses import dataclass
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import ApiError, ApiUnreachable, Conflict, NotFound
from stoker_operator.cluster.events import EventRecorder
from stoker_operator.cluster.resources import MODEL_DEPLOYMENTS
from stoker_operator.observed import Failure
from stoker_operator.plan import Action
from stoker_operator.reconcile.caches import Caches
from stoker_operator.reconcile.pace import Key, Pace
from stoker_operator.status import Change, change, events, words

logger = logging.getLogger(__name__)

Object = dict[str, Any]

# Whoever scales or edits meanwhile makes a conflict of a status; so many in a row are no coincidence.
MAX_TRIES = 3
AFTER_CONFLICTS_S = 20.0


@dataclass(frozen=True)
class Report:
    """What came of telling.

    Args:
        wait_s: seconds until the status may be written, where it was not.
        error: why it could not be.
    """

    wait_s: float | None = None
    error: ApiError | ApiUnreachable | None = None


class Reporter:
    """Writes statuses and Events.

    Args:
        client: the API.
        caches: where written statuses go.
        recorder: writes Events.
        pace: when a status may be written.
    """

    def __init__(self, client: KubeClient, caches: Caches, recorder: EventRecorder, pace: Pace) -> None:
        self._client = client
        self._caches = caches
        self._recorder = recorder
        self._pace = pace

    async def report(self, key: Key, model: Object, told: Object, done: tuple[Action, ...]) -> Report:
        """Write the status if it tells something new and is due, then what happened as Events.

        The actions have happened, so their Events are written whatever becomes of the status.
        """
        before = model.get("status") or {}
        report, is_written = await self._status(key, model, told)
        for event in events(before, told if is_written else before, done):
            await self._recorder.record(model, event)
        return report

    async def _status(self, key: Key, model: Object, told: Object) -> tuple[Report, bool]:
        """Write the status; returns also whether it is what is stored now."""
        last: ApiError | ApiUnreachable | None = None
        for _ in range(MAX_TRIES):
            kind = change(model.get("status") or {}, told)
            if kind is Change.NONE:
                return Report(), True
            said = words(told)
            wait_s = self._pace.status_wait_s(key, kind, said)
            if wait_s:
                return Report(wait_s), False
            try:
                written = await self._client.apply(MODEL_DEPLOYMENTS, _body(model, told), "status")
            except NotFound:
                logger.info("the ModelDeployment was deleted meanwhile", extra={"key": "/".join(key)})
                # Else each child that is collected is another pass, that makes it anew until a watch says so.
                self._caches.stores[MODEL_DEPLOYMENTS].forget_deleted(model)
                return Report(), False
            except Conflict as error:
                logger.info("the ModelDeployment was changed meanwhile", extra={"key": "/".join(key)})
                last = error
                try:
                    live = await self._client.get(MODEL_DEPLOYMENTS, *key)
                except NotFound:
                    self._caches.stores[MODEL_DEPLOYMENTS].forget_deleted(model)
                    return Report(), False
                except (ApiError, ApiUnreachable) as failed:
                    return self._failed(key, said, failed), False
                self._caches.stores[MODEL_DEPLOYMENTS].put(live)
                if live["metadata"]["uid"] != model["metadata"]["uid"]:
                    return Report(), False
                model = live
            except (ApiError, ApiUnreachable) as error:
                return self._failed(key, said, error), False
            else:
                self._pace.status_written(key, kind, said)
                self._caches.put_status(key, written)
                return Report(), True
        # Not a failed pass: others write faster than we can, and there will be a calmer moment.
        assert last is not None
        return Report(self._failed(key, words(told), last, AFTER_CONFLICTS_S).wait_s), False

    def _failed(
        self, key: Key, said: str, error: ApiError | ApiUnreachable, at_least_s: float = 0.0
    ) -> Report:
        logger.warning("the status was not written: %s", error, extra={"key": "/".join(key)})
        failure = Failure("write the status", str(error))
        wait_s = self._pace.status_failed(key, said, failure, max(at_least_s, error.retry_after_s))
        return Report(wait_s, error)


def _body(model: Object, told: Object) -> Object:
    """What to apply: to this object, since of another one of its name it would be a lie.

    To /status a uid is no precondition, so its version has to be one.
    """
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": MODEL_DEPLOYMENTS.kind,
        "metadata": {name: model["metadata"][name] for name in ("name", "namespace", "resourceVersion")},
        "status": told,
    }
