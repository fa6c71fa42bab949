"""How long each request waited for its first step. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from stoker_runtime.core.step import StepPlan
from stoker_runtime.messages import AddRequest, RequestOutput


@dataclass
class QueueTimes:
    """Notes arrivals and first steps, and tells the wait with a request's first output."""

    _arrivals: dict[str, float] = field(default_factory=dict)  # waiting for their first step
    _waits: dict[str, float] = field(default_factory=dict)  # had it, but no output yet

    def arrived(self, command: AddRequest) -> None:
        """Note a request; one that says no arrival has no wait."""
        if command.arrival_s:
            self._arrivals[command.request_id] = command.arrival_s

    def forget(self, request_id: str) -> None:
        """Drop a request that ends without output."""
        self._arrivals.pop(request_id, None)
        self._waits.pop(request_id, None)

    def started(self, plan: StepPlan, now_s: float) -> None:
        """Note the requests whose first step this is.

        Args:
            plan: the step.
            now_s: its start, on the clock of AddRequest.arrival_s.
        """
        if not self._arrivals:
            return
        for request in plan.requests:
            arrival_s = self._arrivals.pop(request.request_id, None)
            if arrival_s is not None:
                self._waits[request.request_id] = max(0.0, now_s - arrival_s)

    def stamped(self, outputs: Iterable[RequestOutput]) -> list[RequestOutput]:
        """Return the outputs with the wait in each request's first one."""
        return [self._stamp(output) for output in outputs]

    def _stamp(self, output: RequestOutput) -> RequestOutput:
        if output.finish_reason is not None:
            self._arrivals.pop(output.request_id, None)
        elif not output.token_ids:
            return output  # scores of its prompt only
        wait_s = self._waits.pop(output.request_id, None)
        return output if wait_s is None else msgspec.structs.replace(output, queue_s=wait_s)
