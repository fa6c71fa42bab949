"""Leader election under everything that may happen to it: never two leaders, and soon one again."""

from __future__ import annotations

from election_world import Simulation, disturb
from hypothesis import given, settings
from hypothesis import strategies as st

STORM_S = 60.0
# What was on its way when the storm ended has arrived, and its claims have ended.
CALM_S = 12.0
CRASH_WITHIN_S = 10.0
STOP_WITHIN_S = 1.5


def after_a_storm(seed: int) -> Simulation:
    """Three candidates after a minute of it, and some calm."""
    simulation = Simulation(seed)
    disturb(simulation, STORM_S)
    simulation.run(STORM_S)
    simulation.is_calm = True
    simulation.run(STORM_S + CALM_S)
    return simulation


def seconds_until_somebody_leads(simulation: Simulation, limit_s: float) -> float:
    since = simulation.now
    while simulation.leader() is None and simulation.now < since + limit_s:
        simulation.run(simulation.now + 0.05)
    return simulation.now - since


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_never_two_and_soon_another_after_a_crash(seed: int) -> None:
    simulation = after_a_storm(seed)
    leader = simulation.leader()
    assert leader is not None, simulation.log[-20:]
    simulation.run(simulation.now + simulation.rng.uniform(0, 3))
    assert simulation.leader() is leader, "nobody takes a Lease that is kept"
    simulation.crash(leader)
    assert seconds_until_somebody_leads(simulation, 20.0) <= CRASH_WITHIN_S, simulation.log[-20:]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_one_that_stops_hands_over_at_the_next_look(seed: int) -> None:
    simulation = after_a_storm(seed)
    leader = simulation.leader()
    assert leader is not None
    simulation.release(leader)
    assert seconds_until_somebody_leads(simulation, 20.0) <= STOP_WITHIN_S, simulation.log[-20:]
