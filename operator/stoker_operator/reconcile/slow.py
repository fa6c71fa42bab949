"""Looks up, now and then, what holds up a pod that takes long to be created."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.warnings import newest_warning
from stoker_operator.observed import Observed
from stoker_operator.reconcile.caches import Key
from stoker_operator.status.slow import SLOW_S, creating_since, longest_creating

READ_AGAIN_S = 60.0


@dataclass(frozen=True)
class _Looked:
    uid: str
    warning: str
    at: datetime


class SlowPods:
    """Reads the Events of one pod of each ModelDeployment, the one that waits longest, at most once a minute.

    Args:
        client: the API.
        clock: the time.
    """

    def __init__(self, client: KubeClient, clock: Callable[[], datetime]) -> None:
        self._client = client
        self._clock = clock
        self._looked: dict[Key, _Looked] = {}

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone."""
        self._looked.pop(key, None)

    async def warnings(self, key: Key, observed: Observed) -> tuple[dict[str, str], float | None]:
        """What the kubelet says, by the pod's uid, and seconds until it should be asked (again)."""
        pod = longest_creating(observed)
        if pod is None:
            self.forget(key)
            return {}, None
        now, uid = self._clock(), pod["metadata"]["uid"]
        wait_s = SLOW_S - (now - creating_since(pod)).total_seconds()
        if wait_s > 0:
            return {}, wait_s
        last = self._looked.get(key)
        if last is None or last.uid != uid or (now - last.at).total_seconds() >= READ_AGAIN_S:
            last = _Looked(uid, await newest_warning(self._client, dict(pod)), now)
            self._looked[key] = last
        return {uid: last.warning}, READ_AGAIN_S - (now - last.at).total_seconds()
