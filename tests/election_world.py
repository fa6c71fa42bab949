"""Candidates for a Lease, over a network that loses and delays calls, on clocks that jump and run unlike.

Time is simulated, and what is true at a moment is known: that is what nobody in a real cluster can tell.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stoker_operator import election
from stoker_operator.config import LeaderElection
from stoker_operator.election import Candidate, Claim, Instant, Lease, Read, Wait, Write

TIMING = LeaderElection(namespace="stoker-system")
LATENCY_S = 0.03


class Server:
    """The API server: one Lease, changed one call after the other."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self._versions = itertools.count(1)

    def put(self, claim: Claim | None, is_released: bool = False) -> Lease:
        transitions = 0 if claim is None else claim.num_transitions
        self.lease = Lease(str(next(self._versions)), claim, is_released, transitions)
        return self.lease

    def write(self, version: str | None, claim: Claim) -> Lease | None:
        """Create or patch; None is a conflict."""
        if version != (None if self.lease is None else self.lease.version):
            return None
        return self.put(claim)


@dataclass
class Process:
    """One start of an operator.

    Args:
        candidate: what it knows.
        rate: how fast its clocks run.
        steps: (true time, seconds) at which its wall clock was set.
        pauses: (from, to) in true time; it does nothing then.
    """

    candidate: Candidate
    rate: float
    offset: float
    steps: list[tuple[float, float]] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    is_alive: bool = True
    call: int = 0

    def at(self, t: float) -> Instant:
        steady = self.offset + self.rate * t
        return Instant(steady, 1e6 + steady + sum(delta for when, delta in self.steps if when <= t))

    def leads(self, t: float) -> bool:
        return self.is_alive and election.remaining_s(self.candidate, self.at(t)) > 0

    def awake_at(self, t: float) -> float:
        return max((end for start, end in self.pauses if start <= t < end), default=t)


class Simulation:
    """Everything, event by event; fails when two lead at a moment."""

    def __init__(self, seed: int, num_processes: int = 3) -> None:
        self.rng = random.Random(seed)
        self.server = Server()
        self.now = 0.0
        self.is_calm = False
        self.log: list[str] = []
        self.processes: list[Process] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for _ in range(num_processes):
            self.start()

    def start(self) -> None:
        """One more process, with clocks of its own."""
        name = f"p{len(self.processes)}"
        candidate = Candidate(identity=name, timing=TIMING)
        process = Process(candidate, self.rng.uniform(0.97, 1.03), self.rng.uniform(-1e5, 1e5))
        self.processes.append(process)
        self.at(self.now + self.rng.uniform(0, 0.5), lambda: self._wake(process))

    def at(self, t: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (t, next(self._order), event))

    def run(self, until: float) -> None:
        """Go on to a moment."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._check()
        self.now = until

    def leader(self) -> Process | None:
        return next((process for process in self.processes if process.leads(self.now)), None)

    def crash(self, process: Process) -> None:
        process.is_alive = False
        self._say(process, "crashes")

    def release(self, process: Process) -> None:
        """It writes no more and gives the Lease back, as on SIGTERM."""
        was_leader = process.leads(self.now)
        process.candidate = election.stepped_down(process.candidate)
        self.crash(process)

        def give_back() -> None:
            held = self.server.lease.claim if self.server.lease is not None else None
            if held is not None and held.holder == process.candidate.identity:
                self.server.put(None, is_released=True)

        delay_s = self._delay_s()
        if was_leader and delay_s is not None:
            self.at(self.now + LATENCY_S + delay_s, give_back)

    def _check(self) -> None:
        leading = [process.candidate.identity for process in self.processes if process.leads(self.now)]
        assert len(leading) <= 1, f"{self.now:.3f}: {leading} lead; {self.log[-20:]}"

    def _delay_s(self) -> float | None:
        """How long a message takes; None of one that is lost."""
        if self.is_calm:
            return self.rng.uniform(0, LATENCY_S)
        kind = self.rng.random()
        if kind < 0.1:
            return None
        return self.rng.uniform(0, 3.0 if kind < 0.2 else LATENCY_S)

    def _wake(self, process: Process) -> None:
        if not process.is_alive or self._is_asleep(process, lambda: self._wake(process)):
            return
        now = process.at(self.now)
        step = election.next_step(process.candidate, now)
        if isinstance(step, Wait):
            self.at(self.now + max(step.seconds, 0.001) / process.rate, lambda: self._wake(process))
            return
        process.call += 1
        number, sent_at = process.call, now
        timeout_s = election.call_timeout_s(process.candidate, now) / process.rate
        self.at(self.now + timeout_s, lambda: self._failed(process, number))
        to_server_s = self._delay_s()
        if to_server_s is not None:
            self.at(self.now + to_server_s, lambda: self._arrive(process, number, step, sent_at))

    def _arrive(self, process: Process, number: int, step: Read | Write, sent_at: Instant) -> None:
        """The server carries a call out, also one whose caller has given up."""
        if isinstance(step, Read):
            answer: Lease | None = self.server.lease
        else:
            claim = Claim(process.candidate.identity, TIMING.lease_duration_s, str(sent_at.wall))
            answer = self.server.write(step.version, claim)
        back_s = self._delay_s()
        if back_s is not None:
            self.at(self.now + back_s, lambda: self._answer(process, number, step, sent_at, answer))

    def _answer(
        self, process: Process, number: int, step: Read | Write, sent_at: Instant, answer: Lease | None
    ) -> None:
        if number != process.call or not process.is_alive:
            return
        if self._is_asleep(process, lambda: self._answer(process, number, step, sent_at, answer)):
            return
        process.call += 1
        now, unit, before = process.at(self.now), self.rng.random(), process.candidate
        if isinstance(step, Read):
            process.candidate = election.after_read(before, now, answer, unit)
        elif answer is None:
            process.candidate = election.after_conflict(before, now, unit)
        else:
            process.candidate = election.after_write(before, sent_at, now, answer)
        self._say(process, f"{step} -> {answer}")
        self._wake(process)

    def _failed(self, process: Process, number: int) -> None:
        if number != process.call or not process.is_alive:
            return
        if self._is_asleep(process, lambda: self._failed(process, number)):
            return
        process.call += 1
        now = process.at(self.now)
        process.candidate = election.after_failure(process.candidate, now, self.rng.random())
        self._wake(process)

    def _is_asleep(self, process: Process, event: Callable[[], None]) -> bool:
        awake_at = process.awake_at(self.now)
        if awake_at > self.now:
            self.at(awake_at, event)
        return awake_at > self.now

    def _say(self, process: Process, text: str) -> None:
        self.log.append(f"{self.now:.3f} {process.candidate.identity} {text}")


def disturb(simulation: Simulation, until: float) -> None:
    """Plan what happens until a moment: pauses, clocks that are set, crashes, stops, other people's edits."""
    rng = simulation.rng

    def somebody(act: Callable[[Process], None]) -> Callable[[], None]:
        def event() -> None:
            alive = [process for process in simulation.processes if process.is_alive]
            leader = simulation.leader()
            act(leader if leader is not None and rng.random() < 0.6 else rng.choice(alive))

        return event

    def pause(process: Process) -> None:
        process.pauses.append((simulation.now, min(simulation.now + rng.uniform(0.1, 20.0), until)))

    def set_clock(process: Process) -> None:
        process.steps.append((simulation.now, rng.choice((-3600.0, -5.0, -1.0, 1.0, 5.0, 3600.0))))

    def crash(process: Process) -> None:
        simulation.crash(process)
        simulation.start()

    def stop(process: Process) -> None:
        simulation.release(process)
        simulation.start()

    def touch() -> None:
        lease = simulation.server.lease
        if lease is not None:
            simulation.server.lease = replace(lease, version=simulation.server.put(lease.claim).version)

    def have_all_seen_a_holder() -> bool:
        # To one that never did it looks like the first start of all.
        alive = [process.candidate.claim for process in simulation.processes if process.is_alive]
        return all(claim is not None and claim.holder != election.UNSEEN for claim in alive)

    def remove() -> None:
        if have_all_seen_a_holder():
            simulation.server.lease = None

    def blank() -> None:
        if have_all_seen_a_holder():
            simulation.server.put(None)

    def take() -> None:
        simulation.server.put(Claim("somebody-else", 7, str(simulation.now)))

    events = [somebody(pause)] * 3 + [somebody(set_clock), touch, remove, take]
    events += [blank] if rng.random() < 0.3 else [somebody(crash), somebody(stop)]
    for _ in range(rng.randrange(12)):
        simulation.at(rng.uniform(0, until - 1), rng.choice(events))
