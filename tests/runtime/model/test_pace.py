"""The measurement of what prompt tokens cost beside decodes, on machines made up for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stoker_runtime.core.step import StepPlan
from stoker_runtime.model.pace import prefill_beside_decodes


class Machine:
    """One whose steps take a fixed time, more for each prompt token, and more when others disturb it."""

    def __init__(self, decode_s: float, token_s: float, disturbances_s: Sequence[float] = ()) -> None:
        self.now_s = 0.0
        self.plans: list[StepPlan] = []
        self._decode_s, self._token_s = decode_s, token_s
        self._disturbances_s = iter(disturbances_s)

    def step(self, plan: StepPlan) -> None:
        num_prompt_tokens = sum(len(r.token_ids) for r in plan.requests if len(r.token_ids) > 1)
        self.now_s += self._decode_s + num_prompt_tokens * self._token_s + next(self._disturbances_s, 0.0)
        self.plans.append(plan)

    def clock(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("decode_s", "token_s", "expected"),
    [
        pytest.param(0.010, 0.00030, 27, id="what-the-decodes-take"),
        pytest.param(0.006, 0.00025, 19, id="fast-memory"),
        pytest.param(0.020, 0.00010, 64, id="no-more-than-is-believed"),
        pytest.param(0.001, 0.00100, 16, id="no-fewer-than-is-believed"),
        pytest.param(0.010, 0.0, 64, id="too-fast-to-tell"),
    ],
)
def test_tokens_that_stretch_a_step_to_the_limit(decode_s: float, token_s: float, expected: int) -> None:
    machine = Machine(decode_s, token_s)
    assert prefill_beside_decodes(machine.step, 16, 8192, machine.clock) == expected


def test_slow_machines_are_asked_once() -> None:
    machine = Machine(0.5, 0.1)
    prefill_beside_decodes(machine.step, 16, 8192, machine.clock)
    assert len(machine.plans) == 2


def test_quiet_machines_are_asked_twice() -> None:
    machine = Machine(0.010, 0.0003)
    prefill_beside_decodes(machine.step, 16, 8192, machine.clock)
    assert len(machine.plans) == 4


def test_disturbed_machines_are_asked_until_two_runs_agree() -> None:
    machine = Machine(0.010, 0.0003, [0.004, 0.0, 0.008, 0.0, 0.003, 0.0, 0.0])
    assert prefill_beside_decodes(machine.step, 16, 8192, machine.clock) == 27
    assert len(machine.plans) == 7


def test_requests_of_the_measurement_fit_their_blocks() -> None:
    machine = Machine(0.01, 0.0003)
    assert prefill_beside_decodes(machine.step, 4, 128, machine.clock) == 0
    assert machine.plans == []
    prefill_beside_decodes(machine.step, 4, 129, machine.clock)
    for request in (request for plan in machine.plans for request in plan.requests):
        assert request.num_computed_tokens + len(request.token_ids) <= 4 * len(request.block_ids) <= 128
