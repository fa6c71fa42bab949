"""Single decisions of leader election."""

from __future__ import annotations

from dataclasses import replace

from stoker_operator import election
from stoker_operator.config import LeaderElection
from stoker_operator.election import Candidate, Claim, Instant, Lease, Read, Wait, Write

TIMING = LeaderElection(namespace="stoker-system")
ME = Candidate(identity="me", timing=TIMING)
THEIRS = Claim("they", 7.0, "t1")


def at(steady: float, wall: float | None = None) -> Instant:
    return Instant(steady, 1e9 + (steady if wall is None else wall))


def leading(sent: float = 0.0) -> Candidate:
    lease = Lease("1", Claim("me", 7.0, "t1"))
    return election.after_write(ME, at(sent), at(sent + 0.1), lease)


def test_a_lease_that_never_had_a_holder_is_claimed_at_once() -> None:
    assert election.next_step(ME, at(0)) == Read()
    read = election.after_read(ME, at(0), Lease("1"), 0.0)
    assert election.next_step(read, at(0)) == Write("1", is_new=True)


def test_where_there_is_none_somebody_may_still_lead() -> None:
    candidate = election.after_read(ME, at(0), None, 0.0)
    assert election.next_step(candidate, at(0.5)) == Wait(0.5)
    for second in range(1, 7):
        candidate = election.after_read(candidate, at(second), None, 0.0)
        assert election.next_step(candidate, at(second)) == Wait(1.0)
    candidate = election.after_read(candidate, at(7), None, 0.0)
    assert election.next_step(candidate, at(7)) == Write(None, is_new=True)


def test_a_claim_counts_from_when_it_was_seen_whatever_it_says() -> None:
    candidate = election.after_read(ME, at(100), Lease("1", THEIRS), 0.0)
    candidate = election.after_read(candidate, at(106), Lease("1", THEIRS), 0.0)
    assert not election.is_free(candidate, at(106.9))
    assert election.next_step(candidate, at(107)) == Read()
    candidate = election.after_read(candidate, at(107), Lease("1", THEIRS), 0.0)
    assert election.next_step(candidate, at(107)) == Write("1", is_new=True)


def test_a_renewal_counts_and_somebody_elses_label_does_not() -> None:
    candidate = election.after_read(ME, at(0), Lease("1", THEIRS), 0.0)
    labelled = election.after_read(candidate, at(6), Lease("2", THEIRS), 0.0)
    assert election.is_free(labelled, at(7))
    renewed = election.after_read(candidate, at(6), Lease("2", replace(THEIRS, renewed="t2")), 0.0)
    assert not election.is_free(renewed, at(12.9))


def test_one_that_was_given_back_is_free() -> None:
    candidate = election.after_read(ME, at(0), Lease("1", THEIRS), 0.0)
    candidate = election.after_read(candidate, at(1), Lease("2", is_released=True), 0.0)
    assert election.next_step(candidate, at(1)) == Write("2", is_new=True)


def test_one_that_was_emptied_is_not() -> None:
    candidate = election.after_read(ME, at(0), Lease("1", THEIRS), 0.0)
    candidate = election.after_read(candidate, at(6), Lease("2"), 0.0)
    assert not election.is_free(candidate, at(12.9))
    assert election.is_free(candidate, at(13))


def test_a_leader_may_write_until_the_deadline_after_it_sent_the_renewal() -> None:
    candidate = leading(sent=10.0)
    assert election.remaining_s(candidate, at(10.1)) > 4.8
    assert election.remaining_s(candidate, at(15)) <= 0


def test_time_passes_as_fast_as_the_faster_clock_says() -> None:
    candidate = leading()
    assert election.remaining_s(candidate, at(0.1, wall=6.0)) <= 0, "suspended, or the clock was set"
    assert election.remaining_s(candidate, at(6.0, wall=-3600.0)) <= 0


def test_a_leader_renews_each_period_and_knows_the_version() -> None:
    candidate = leading()
    assert election.next_step(candidate, at(0.5)) == Wait(0.5)
    assert election.next_step(candidate, at(1.0)) == Write("1", is_new=False)


def test_a_leader_that_gets_no_answer_tries_again_while_it_leads() -> None:
    candidate = election.after_failure(leading(), at(2.0), 0.0, at_least_s=60.0)
    step = election.next_step(candidate, at(2.0))
    assert isinstance(step, Wait)
    assert step.seconds <= 1.5, "what the server asks for would outlast the Lease"
    assert election.next_step(candidate, at(3.6)) == Read()
    assert election.call_timeout_s(candidate, at(4.8)) < 0.21


def test_a_leader_whose_lease_is_gone_makes_it_anew_and_one_whose_lease_is_taken_stops() -> None:
    conflict = election.after_conflict(leading(), at(1.0), 0.0)
    gone = election.after_read(conflict, at(1.2), None, 0.0)
    assert election.next_step(gone, at(1.2)) == Write(None, is_new=True)
    assert election.remaining_s(gone, at(1.2)) > 0
    taken = election.after_read(conflict, at(1.2), Lease("9", THEIRS), 0.0)
    assert election.remaining_s(taken, at(1.2)) == 0
