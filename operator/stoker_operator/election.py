"""Who leads among several operators: the decisions about one Lease; pure, clocks are arguments.

The algorithm is client-go's (tools/leaderelection): a claim on the Lease counts for as long as it says,
from the moment at which this very process first saw it, so that no clock is ever compared with another
machine's. Three rules are stricter. A leader stops by when it *sent* its last renewal, not by when the
answer came. Its own time runs as fast as the faster of two clocks says, so that it has passed also while
the process or its machine was suspended. And a claim outlives its Lease: whoever finds the Lease deleted,
or its holder gone without having given it back, waits as long as for a claim that was made just now. Only a
Lease that never had a holder is free at once, as is one that its holder gave back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stoker_operator.config import LeaderElection

# A period is up to so much longer, so that candidates do not ask all at once.
JITTER = 0.2
# What a leader writes that stops, beside an empty holder; one by itself may be somebody's edit.
RELEASED_S = 1
# Stands for whoever may lead although the Lease does not say so.
UNSEEN = "?"


@dataclass(frozen=True, slots=True)
class Instant:
    """Two clocks of this machine at one moment, seconds.

    Args:
        steady: never set, and goes on while the machine sleeps where the system has such a clock.
        wall: the time of day, which may be set at any moment.
    """

    steady: float
    wall: float


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Lease says of its holder.

    Args:
        holder: its identity.
        duration_s: how long the claim counts.
        renewed: when, by the holder's clock; only whether it changes is of interest.
        acquired: since when the holder leads, by its clock.
        num_transitions: changes of the holder so far.
    """

    holder: str
    duration_s: float
    renewed: str = ""
    acquired: str = ""
    num_transitions: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The object as read.

    Args:
        version: its resource version.
        claim: of its holder; None where it has none.
        is_released: whether its last holder gave it back.
        num_transitions: changes of the holder so far.
    """

    version: str
    claim: Claim | None = None
    is_released: bool = False
    num_transitions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What one process knows.

    Args:
        identity: its name, of this one start of it.
        timing: the settings.
        lease: as last read; None when there was none.
        is_fresh: whether ``lease`` is what the last call showed, so that a write may build on it.
        claim: the one that counts; None when nobody's does.
        claim_at_s: when it was first seen, on the steady clock.
        held_at: when the renewal that worked last was sent; None of a follower.
        due_at_s: when the next call is due, on the steady clock.
    """

    identity: str
    timing: LeaderElection
    lease: Lease | None = None
    is_fresh: bool = False
    claim: Claim | None = None
    claim_at_s: float = 0.0
    held_at: Instant | None = None
    due_at_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read the Lease."""


@dataclass(frozen=True, slots=True)
class Write:
    """Claim the Lease.

    Args:
        version: that it must still have; None creates it.
        is_new: whether the holder is another one than before.
    """

    version: str | None
    is_new: bool


Step = Wait | Read | Write


def remaining_s(candidate: Candidate, now: Instant) -> float:
    """Seconds for which this process may still write; 0 or less of one that does not lead."""
    if candidate.held_at is None:
        return 0.0
    passed_s = max(now.steady - candidate.held_at.steady, now.wall - candidate.held_at.wall)
    return candidate.timing.renew_deadline_s - passed_s


def next_step(candidate: Candidate, now: Instant) -> Step:
    """Decide what to do now."""
    wait_s = candidate.due_at_s - now.steady
    left_s = remaining_s(candidate, now)
    if wait_s > 0:
        return Wait(min(wait_s, left_s) if left_s > 0 else wait_s)
    if not candidate.is_fresh:
        return Read()
    held = candidate.lease.claim if candidate.lease is not None else None
    return Write(
        version=None if candidate.lease is None else candidate.lease.version,
        is_new=held is None or held.holder != candidate.identity,
    )


def after_read(candidate: Candidate, now: Instant, lease: Lease | None, random_unit: float) -> Candidate:
    """Take in the Lease as it is; None when there is none."""
    candidate = _honour(candidate, now, lease)
    held = candidate.claim.holder if candidate.claim is not None else ""
    if remaining_s(candidate, now) > 0 and held == candidate.identity:
        return replace(candidate, is_fresh=True, due_at_s=now.steady)
    candidate = replace(candidate, held_at=None)
    if is_free(candidate, now):
        return replace(candidate, is_fresh=True, due_at_s=now.steady)
    wait_s = min(_period_s(candidate, random_unit), _claim_left_s(candidate, now))
    return replace(candidate, is_fresh=False, due_at_s=now.steady + wait_s)


def after_write(candidate: Candidate, sent_at: Instant, now: Instant, lease: Lease) -> Candidate:
    """Take in the answer to a claim of ours that worked."""
    return replace(
        candidate,
        lease=lease,
        is_fresh=True,
        claim=lease.claim,
        claim_at_s=now.steady,
        held_at=sent_at,
        due_at_s=max(sent_at.steady + candidate.timing.retry_period_s, now.steady),
    )


def after_conflict(candidate: Candidate, now: Instant, random_unit: float) -> Candidate:
    """A claim of ours met another version than it was for: a leader looks at once who wrote it."""
    period_s = _period_s(candidate, random_unit)
    wait_s = period_s / 10 if remaining_s(candidate, now) > 0 else period_s
    return replace(candidate, is_fresh=False, due_at_s=now.steady + wait_s)


def after_failure(
    candidate: Candidate, now: Instant, random_unit: float, at_least_s: float = 0.0
) -> Candidate:
    """A call failed; whether it was carried out is not known.

    Args:
        candidate: whose call.
        now: the time.
        random_unit: a random number in [0, 1).
        at_least_s: what the server asked to wait; a leader may not wait for longer than it leads.
    """
    period_s = _period_s(candidate, random_unit)
    wait_s = max(period_s, at_least_s)
    left_s = remaining_s(candidate, now)
    if left_s > 0:
        wait_s = min(max(period_s / 2, at_least_s), left_s / 2)
    return replace(candidate, is_fresh=False, due_at_s=now.steady + wait_s)


def stepped_down(candidate: Candidate) -> Candidate:
    """One that leads no more, and looks before it leads again."""
    return replace(candidate, held_at=None, is_fresh=False)


def look_now(candidate: Candidate) -> Candidate:
    """One that has heard something and does not wait until the next call is due."""
    return replace(candidate, due_at_s=float("-inf"))


def is_free(candidate: Candidate, now: Instant) -> bool:
    """Whether no claim but our own counts any more."""
    claim = candidate.claim
    return claim is None or claim.holder == candidate.identity or _claim_left_s(candidate, now) <= 0


def call_timeout_s(candidate: Candidate, now: Instant) -> float:
    """How long a call may take, seconds: one that gets no answer leaves time for others."""
    limit_s = candidate.timing.renew_deadline_s * 0.4
    left_s = remaining_s(candidate, now)
    return min(limit_s, left_s) if left_s > 0 else limit_s


def _honour(candidate: Candidate, now: Instant, lease: Lease | None) -> Candidate:
    """Bring the claim that counts up to date."""
    claim = lease.claim if lease is not None else None
    is_same = lease == candidate.lease
    candidate = replace(candidate, lease=lease)
    if claim is not None:
        # Whoever changes the object but not the claim, such as its labels, keeps nobody in office.
        is_seen = claim == candidate.claim
        return candidate if is_seen else replace(candidate, claim=claim, claim_at_s=now.steady)
    if lease is not None and (lease.is_released or candidate.claim is None):
        return replace(candidate, claim=None)
    known = candidate.claim.holder if candidate.claim is not None else ""
    if (known == UNSEEN and is_same) or (known == candidate.identity and remaining_s(candidate, now) > 0):
        return candidate
    # It may have been renewed since it was last seen here.
    unseen = Claim(UNSEEN, candidate.timing.lease_duration_s)
    return replace(candidate, claim=unseen, claim_at_s=now.steady)


def _claim_left_s(candidate: Candidate, now: Instant) -> float:
    if candidate.claim is None:
        return 0.0
    return candidate.claim_at_s + candidate.claim.duration_s - now.steady


def _period_s(candidate: Candidate, random_unit: float) -> float:
    return candidate.timing.retry_period_s * (1.0 + JITTER * random_unit)
