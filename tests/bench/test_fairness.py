from __future__ import annotations

from collections import Counter

import fairness
import soak
from loadgen.results import Outcome


def test_every_cycle_begins_with_a_burst_of_long_prompts_and_short_ones_come_at_random() -> None:
    starts = fairness.plan(cycle_s=10.0, num_cycles=50, seed=1)
    assert starts == fairness.plan(cycle_s=10.0, num_cycles=50, seed=1)
    assert [start.at_s for start in starts] == sorted(start.at_s for start in starts)
    bursts = Counter(start.at_s for start in starts if start.kind is fairness.LONG)
    assert bursts == {10.0 * cycle: fairness.LONG.per_cycle for cycle in range(50)}
    num_short = sum(start.kind is fairness.SHORT for start in starts)
    assert 0.9 < num_short / (50 * fairness.SHORT.per_cycle) < 1.1


def test_a_soak_counts_what_was_answered_and_keeps_why_others_failed() -> None:
    state = soak.Soak(resident=[(0.0, 5), (60.0, 7), (120.0, 9)])
    state.note(Outcome(0, 0.0, 1.0, output_tokens=3))
    for number in range(20):
        state.note(Outcome(0, 0.0, 1.0, failure="http_500", detail=str(number)))
    assert (state.answered, state.output_tokens, state.failures) == (1, 3, {"http_500": 20})
    assert state.first_failures == [str(number) for number in range(10)]
    assert state.resident_at(70.0) == 7
