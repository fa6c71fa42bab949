"""Runners of other kinds as AsyncRunners."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec.structs import replace

from stoker_runtime.core.step import AsyncRunner, Runner, StepPlan, StepResult
from stoker_runtime.messages import EngineReady


class InTurn:
    """Computes a step when its result is asked for, so there is one at a time.

    Args:
        runner: computes it.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._plan: StepPlan | None = None

    def submit(self, plan: StepPlan) -> None:
        """See AsyncRunner; the step before must have been collected."""
        assert self._plan is None, "the last step has not been collected"
        self._plan = plan

    def collect(self) -> StepResult:
        """See AsyncRunner."""
        assert self._plan is not None, "no step has been submitted"
        plan, self._plan = self._plan, None
        return self._runner.step(plan)


class InThread:
    """Computes steps one after the other in a thread, and reads pending tokens from the step before.

    Args:
        runner: computes them; from now on only that thread calls its `step`.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steps")
        self._submitted: deque[Future[StepResult]] = deque()
        self._last = StepResult()

    def submit(self, plan: StepPlan) -> None:
        """See AsyncRunner."""
        # Block tables grow while the thread still reads them.
        own = [replace(request, block_ids=list(request.block_ids)) for request in plan.requests]
        self._submitted.append(self._thread.submit(self._compute, StepPlan(own)))

    def collect(self) -> StepResult:
        """See AsyncRunner."""
        return self._submitted.popleft().result()

    def _compute(self, plan: StepPlan) -> StepResult:
        self._last = self._runner.step(plan.resolved(self._last))
        return self._last


def as_async(
    runner: Runner, ready: EngineReady, scheduling: str
) -> tuple[InTurn | InThread | AsyncRunner, int]:
    """Return who takes the engine's steps, and how many may be in flight.

    Args:
        runner: the loaded model.
        ready: what it says of itself.
        scheduling: EngineConfig.async_scheduling.
    """
    if scheduling == "off" or (scheduling == "auto" and not ready.async_scheduling):
        return InTurn(runner), 1
    if ready.async_scheduling and isinstance(runner, AsyncRunner):
        return runner, 2
    return InThread(runner), 2
