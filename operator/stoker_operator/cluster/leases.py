"""The Lease that leader election is about: as an object, and as ``election`` sees it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import NotFound
from stoker_operator.cluster.resources import LEASES
from stoker_operator.config import LeaderElection
from stoker_operator.election import RELEASED_S, Claim, Lease, Write

Object = dict[str, Any]


def lease_of(obj: Object, default_duration_s: float) -> Lease:
    """Read a Lease as it is stored.

    Args:
        obj: the object; anybody may have written anything into it.
        default_duration_s: of a claim that does not say how long it counts.
    """
    spec = obj.get("spec") or {}
    holder, duration_s = spec.get("holderIdentity") or "", spec.get("leaseDurationSeconds")
    num_transitions = int(spec.get("leaseTransitions") or 0)
    claim = None
    if holder:
        claim = Claim(
            holder=str(holder),
            duration_s=float(duration_s or default_duration_s),
            renewed=str(spec.get("renewTime") or ""),
            acquired=str(spec.get("acquireTime") or ""),
            num_transitions=num_transitions,
        )
    version = str((obj.get("metadata") or {}).get("resourceVersion") or "")
    return Lease(version, claim, claim is None and duration_s == RELEASED_S, num_transitions)


class Leases:
    """The calls about one Lease; ``last`` is the object as a call returned it last.

    Args:
        client: the API; not one whose writes need a leader.
        settings: which Lease, and for how long it is claimed.
        identity: of this process.
    """

    def __init__(self, client: KubeClient, settings: LeaderElection, identity: str) -> None:
        self._client = client
        self._settings = settings
        self._identity = identity
        self.last: Object | None = None
        self._last_renewed = datetime.min.replace(tzinfo=UTC)

    async def read(self) -> Lease | None:
        """The Lease as it is; None when there is none."""
        try:
            found = await self._client.get(LEASES, self._settings.namespace, self._settings.name)
        except NotFound:
            return None
        return self._remember(found)

    async def claim(self, step: Write, before: Lease | None, wall: datetime) -> Lease:
        """Create the Lease, or claim that of a version.

        Args:
            step: what to claim.
            before: the Lease as it was read.
            wall: the time of day.

        Raises:
            Conflict, AlreadyExists, NotFound: it is not what it was.
        """
        # Two renewals that read alike would look like one to others.
        self._last_renewed = max(wall, self._last_renewed + timedelta(microseconds=1))
        spec: Object = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._settings.lease_duration_s,
            "renewTime": _micro_time(self._last_renewed),
        }
        if step.is_new:
            spec["acquireTime"] = spec["renewTime"]
            had_holder = before is not None and (before.claim is not None or before.is_released)
            spec["leaseTransitions"] = (before.num_transitions if before else 0) + had_holder
        if step.version is None:
            metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
            manifest = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": metadata,
                "spec": spec,
            }
            return self._remember(await self._client.create(LEASES, manifest))
        return self._remember(await self._patch(step.version, spec))

    async def release(self, version: str) -> None:
        """Give the Lease of a version back: whoever sees it may take it at once."""
        await self._patch(version, {"holderIdentity": None, "leaseDurationSeconds": RELEASED_S})

    async def _patch(self, version: str, spec: Object) -> Object:
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._client.merge_patch(LEASES, self._settings.namespace, self._settings.name, patch)

    def parse(self, obj: Object) -> Lease:
        """What an object says."""
        return lease_of(obj, self._settings.lease_duration_s)

    def _remember(self, obj: Object) -> Lease:
        self.last = obj
        return self.parse(obj)


def _micro_time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
