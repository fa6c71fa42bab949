"""The bar of rolling updates, on made-up ones: what holds it, what breaks it, what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import rolls
from scenarios.kube import Object
from scenarios.rolls import Request, Roll, Sighting

BEGAN_S = 1000.0
POLL_S = 0.5
DRAIN_SECONDS = 3.0
GRACE_S = 120.0
NEVER_S = 1e9


@dataclass(frozen=True)
class Life:
    """When a pod of the made-up cluster went through what."""

    created_s: float = 0.0
    ready_s: float = 0.0
    left_s: float = NEVER_S
    deleted_s: float = NEVER_S
    gone_s: float = NEVER_S


def lives_of(starts_s: list[float], drains_s: list[float]) -> dict[str, Life]:
    """Three pods rolled as the operator does: a drain goes on beside the next start."""
    lives, now_s = {}, BEGAN_S
    for index, (start_s, drain_s) in enumerate(zip(starts_s, drains_s, strict=True)):
        ready_s = now_s + start_s
        gone_s = ready_s + drain_s
        lives[f"new-{index}"] = Life(now_s, ready_s)
        lives[f"old-{index}"] = Life(left_s=ready_s, deleted_s=gone_s - 0.4 * drain_s, gone_s=gone_s)
        now_s = ready_s
    return lives


def look(lives: dict[str, Life], at_s: float) -> Sighting:
    there = {name: life for name, life in lives.items() if life.created_s <= at_s < life.gone_s}
    return Sighting(
        at_s,
        pods=frozenset(there),
        ready=frozenset(name for name, life in there.items() if life.ready_s <= at_s < life.left_s),
        draining=frozenset(name for name, life in there.items() if life.left_s <= at_s),
        deleted=frozenset(name for name, life in there.items() if life.deleted_s <= at_s),
    )


def watch(lives: dict[str, Life]) -> list[Sighting]:
    """Look now and then from before the edit until all is over, and a little longer."""
    sightings = [look(lives, BEGAN_S - POLL_S)]
    old, num_after = sightings[0].pods, 0
    while num_after < 5:
        sightings.append(look(lives, sightings[-1].at_s + POLL_S))
        num_after += sightings[-1].is_over(old)
    return sightings


def busy(length_s: float, until_s: float = 1600.0) -> list[Request]:
    """One client that sends requests of one length, one after the other."""
    count = int((until_s - BEGAN_S) / length_s) + 2
    begins_s = [BEGAN_S - length_s / 2 + index * length_s for index in range(count)]
    return [Request(begin_s, begin_s + length_s) for begin_s in begins_s]


def rolled(starts_s: list[float], drains_s: list[float], requests: list[Request]) -> Roll:
    return rolls.measure(BEGAN_S, watch(lives_of(starts_s, drains_s)), requests, DRAIN_SECONDS)


def seconds(value: float | None) -> object:
    """The value, give or take what lies between two looks."""
    return pytest.approx(value, abs=2 * POLL_S)


def test_drains_of_a_request_beside_the_next_start_hold_the_bar() -> None:
    roll = rolled([14.0, 15.0, 16.0], [9.0, 12.0, 11.0], busy(10.0))
    assert roll.faults() == []
    assert roll.took_s == seconds(14 + 15 + 16 + 11)
    assert [start.took_s for start in roll.starts] == [seconds(14), seconds(15), seconds(16)]
    assert [drain.took_s for drain in roll.drains] == [seconds(9), seconds(12), seconds(11)]
    assert [drain.deleted_s for drain in roll.drains] == [seconds(5.4), seconds(7.2), seconds(6.6)]
    assert roll.longest_s == pytest.approx(10.0)
    assert roll.least_s == seconds(45 + 10 + DRAIN_SECONDS)


@pytest.mark.parametrize("start_s", [5.0, 15.0, 60.0, 150.0])
def test_drains_of_a_grace_period_break_it_however_long_the_starts(start_s: float) -> None:
    roll = rolled([start_s] * 3, [GRACE_S] * 3, busy(12.0))
    waited = [fault for fault in roll.faults() if "drained for 120" in fault]
    assert len(waited) == 3, roll.faults()
    assert ("are over" in roll.faults()[0]) == (start_s < 100), "long starts hide a drain in the whole"


def test_one_drain_of_a_grace_period_is_one_too_many() -> None:
    (fault,) = rolled([40.0] * 3, [GRACE_S, 10.0, 10.0], busy(10.0)).faults()
    assert fault.startswith("old-0 drained for 120")


def test_long_requests_may_take_as_long_as_they_do() -> None:
    assert rolled([10.0] * 3, [90.0] * 3, busy(88.0)).faults() == []


def test_waiting_between_pods_breaks_it() -> None:
    lives = lives_of([10.0] * 3, [8.0] * 3)
    late = {"new-2": replace(lives["new-2"], created_s=1080.0, ready_s=1090.0)}
    late["old-2"] = Life(left_s=1090.0, deleted_s=1095.0, gone_s=1098.0)
    (fault,) = rolls.measure(BEGAN_S, watch(lives | late), busy(8.0), DRAIN_SECONDS).faults()
    assert fault.startswith("98.")
    assert "are over 1.5 x 4" in fault


def test_only_requests_in_flight_meanwhile_count() -> None:
    before, after = Request(BEGAN_S - 100, BEGAN_S - 1), Request(1050.0, 1150.0)
    roll = rolled([10.0] * 3, [8.0] * 3, [before, *busy(8.0), after])
    assert roll.longest_s == pytest.approx(8.0)


def test_idle_pods_prove_nothing() -> None:
    faults = rolled([10.0] * 3, [4.0] * 3, []).faults()
    assert faults == [f"old-{index} drained while no request was in flight" for index in range(3)]


def test_a_pod_that_goes_without_a_drain_is_a_fault() -> None:
    lives = lives_of([10.0] * 3, [8.0] * 3)
    lives["old-1"] = replace(lives["old-1"], left_s=NEVER_S)
    roll = rolls.measure(BEGAN_S, watch(lives), busy(8.0), DRAIN_SECONDS)
    assert roll.faults() == ["old-1 went without a drain"]


def test_a_pod_that_never_gets_ready_is_a_fault_and_lengthens_no_limit() -> None:
    lives = lives_of([10.0] * 3, [8.0] * 3)
    failed = {"failed": Life(1001.0, NEVER_S, gone_s=1020.0)}
    with_it, without = (
        rolls.measure(BEGAN_S, watch(found), busy(8.0), DRAIN_SECONDS) for found in (lives | failed, lives)
    )
    assert with_it.faults() == ["failed was never ready"]
    assert with_it.least_s == without.least_s


def test_what_is_not_over_is_not_measured() -> None:
    whole = watch(lives_of([10.0] * 3, [8.0] * 3))
    old = whole[0].pods
    cut = [seen for seen in whole if not seen.is_over(old)]
    with pytest.raises(ValueError, match="not over"):
        rolls.measure(BEGAN_S, cut, busy(8.0), DRAIN_SECONDS)


def test_nothing_that_happens_after_its_end_makes_it_longer() -> None:
    lives = lives_of([10.0] * 3, [8.0] * 3)
    sightings = watch(lives)
    later = [*sightings, *(look(lives, sightings[-1].at_s + POLL_S * index) for index in range(1, 40))]
    both = (rolls.measure(BEGAN_S, seen, busy(8.0), DRAIN_SECONDS) for seen in (sightings, later))
    assert len({str(roll) for roll in both}) == 1


def test_text_says_what_can_be_cited() -> None:
    text = str(rolled([14.0, 15.0, 16.0], [9.0, 12.0, 11.0], busy(10.0)))
    assert text == (
        "rolling update of 3 busy pods: 56.0 s, 0.97 x 58.0 s (starts 14.0 + 15.0 + 16.0 s, longest request "
        "10.0 s, drainSeconds 3); drains until gone (until deleted) 9.0 (5.5), 12.0 (7.5), 11.0 (7.0) s"
    )


@given(
    starts_s=st.lists(st.floats(2, 30), min_size=3, max_size=3),
    length_s=st.floats(5, 20),
    shares=st.lists(st.floats(0.1, 1.2), min_size=3, max_size=3),
)
def test_any_drains_near_the_length_of_a_request_hold_it(
    starts_s: list[float], length_s: float, shares: list[float]
) -> None:
    drains_s = [3.0 + share * length_s for share in shares]
    assert rolled(starts_s, drains_s, busy(length_s)).faults() == []


@given(
    starts_s=st.lists(st.floats(2, 30), min_size=3, max_size=3),
    length_s=st.floats(5, 20),
    which=st.integers(0, 2),
)
def test_any_drain_beyond_the_limit_breaks_it(starts_s: list[float], length_s: float, which: int) -> None:
    drains_s = [length_s] * 3
    drains_s[which] = rolls.FACTOR * (length_s + DRAIN_SECONDS) + 2 * POLL_S
    assert any(
        fault.startswith(f"old-{which} ") for fault in rolled(starts_s, drains_s, busy(length_s)).faults()
    )


def pod(name: str, *, ready: str = "True", **metadata: object) -> Object:
    conditions = [{"type": "Ready", "status": ready}]
    return {"metadata": {"name": name, **metadata}, "status": {"conditions": conditions}}


def test_sighting_reads_what_pods_show() -> None:
    since = {rolls.DRAINING_SINCE: "2026-01-01T00:00:00.000Z"}
    pods = [
        pod("serves"),
        pod("starts", ready="False", annotations={"other": "x"}),
        {"metadata": {"name": "new"}},
        pod("drains", ready="False", annotations=since),
        pod("ends", ready="False", annotations=since, deletionTimestamp="2026-01-01T00:00:09Z"),
    ]
    assert rolls.sighting(7.0, pods) == Sighting(
        7.0,
        pods=frozenset({"serves", "starts", "new", "drains", "ends"}),
        ready=frozenset({"serves"}),
        draining=frozenset({"drains", "ends"}),
        deleted=frozenset({"ends"}),
    )
