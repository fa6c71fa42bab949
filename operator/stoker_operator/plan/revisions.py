"""Which revision new pods get, and which revisions are on record.

New pods get the wanted revision; while a rollout is held, the one that serves. Either way they are made from
its record (`desired.record`) and from nothing else: not from the spec, which may have changed, and not from
pods, into which webhooks, the scheduler and people have written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker_operator.api import labels
from stoker_operator.desired import Wanted
from stoker_operator.desired.record import record, recorded_shape
from stoker_operator.desired.shape import GroupShape
from stoker_operator.observed import Manifest, Observed
from stoker_operator.plan.groups import Group, Phase
from stoker_operator.plan.ownership import is_ours
from stoker_operator.plan.pods import is_terminating, labels_of


@dataclass(frozen=True, slots=True)
class Target:
    """The revision that new pods get.

    Args:
        revision: its hash; "" when nothing tells which one, and then there are no pods either.
        shape: of its groups; None while it has no record, so that no pod of it can be made.
        is_held: whether pods of other revisions stay as they are.
    """

    revision: str
    shape: GroupShape | None
    is_held: bool


@dataclass(frozen=True, slots=True)
class Revisions:
    """What is on record, by revision."""

    wanted: Wanted
    records: Mapping[str, Manifest]
    shapes: Mapping[str, GroupShape]
    doubles: tuple[Manifest, ...]

    @property
    def newest(self) -> str:
        """The revision that the spec asks for; "" when the spec cannot be served."""
        return self.wanted.revision if self.wanted.shape else ""

    def target(self, all_groups: Sequence[Group]) -> Target:
        """Return the revision that new pods get.

        Until the newest revision is on record the rollout waits, as if it were paused.
        """
        is_known = self.newest in self.records
        if is_known and not self.wanted.is_held:
            return self._target(self.newest, is_held=False)
        held = _serving_revision(all_groups)
        if held is None and self.wanted.is_held:
            # Scaled to zero meanwhile: the last one that was on record goes on.
            last = max(self.records.values(), key=_place, default=None)
            held = None if last is None else labels_of(last)[labels.REVISION]
        is_held = self.wanted.is_held or not is_known
        return self._target(self.newest if held is None else held, is_held=is_held)

    def missing(self, target: Target) -> dict[str, Any] | None:
        """Return the record to write, None when the newest revision has one or waits."""
        shape = self.wanted.shape
        if shape is None or self.newest in self.records:
            return None
        if self.wanted.is_held and target.revision != self.newest:
            return None
        number = max((_place(stored)[0] for stored in self.records.values()), default=0) + 1
        return record(self.wanted.model, self.newest, shape, number)

    def unneeded(self, target: Target, pods: Sequence[Manifest]) -> Iterator[Manifest]:
        """Return the records of revisions that nobody wants and no pod is of, and what is on record twice."""
        of_pods = {labels_of(pod).get(labels.REVISION) for pod in pods}
        needed = {self.wanted.revision, target.revision, *of_pods}
        yield from self.doubles
        yield from (stored for revision, stored in self.records.items() if revision not in needed)

    def shape(self, revision: str) -> GroupShape | None:
        """Return the shape of a revision's groups; None when it has no record."""
        return self.shapes.get(revision)

    def _target(self, revision: str, *, is_held: bool) -> Target:
        return Target(revision, self.shape(revision), is_held)


def revisions(wanted: Wanted, observed: Observed) -> Revisions:
    """Return what is on record of a ModelDeployment: of two records of one revision, the older."""
    found: dict[str, Manifest] = {}
    shapes: dict[str, GroupShape] = {}
    doubles = []
    for stored in sorted(observed.revisions, key=_place):
        revision = labels_of(stored).get(labels.REVISION, "")
        shape = recorded_shape(wanted.model, stored) if revision else None
        if shape is None or is_terminating(stored) or not is_ours(stored, observed.model):
            continue
        if revision in found:
            doubles.append(stored)
        else:
            found[revision], shapes[revision] = stored, shape
    return Revisions(wanted, found, shapes, tuple(doubles))


def _place(stored: Manifest) -> tuple[int, str]:
    number = stored.get("revision")
    return number if isinstance(number, int) else 0, stored["metadata"]["name"]


def _serving_revision(all_groups: Sequence[Group]) -> str | None:
    """Return the revision that most groups have answered with; of equals, the one that came first.

    What counts is an engine that answered since it started, ready or not at this moment and on a lost node or
    not, so that a slow probe or a broken network changes nothing. Where none has, all groups count.
    """
    by_revision: dict[str, list[Group]] = defaultdict(list)
    for group in all_groups:
        if group.revision:
            by_revision[group.revision].append(group)

    def evidence(revision: str) -> tuple[int, int, int, float, str]:
        found = by_revision[revision]
        answering = [
            group for group in found if group.has_answered and (group.is_live or group.phase is Phase.LOST)
        ]
        num_live = sum(group.is_live for group in found)
        age = -min(group.created_at for group in found).timestamp()
        return len(answering), num_live, len(found), age, revision

    return max(by_revision, key=evidence, default=None)
