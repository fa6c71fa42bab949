"""How long prompts wait for each other, whatever arrives: the bounds that core/prefill.py promises."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import make_request

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, StepResult

SHORT = 16  # tokens that a short prompt has at most
BLOCK_SIZE = 4


@dataclass
class Simulation:
    """A scheduler with room for all, and when each request arrived and got its first token."""

    budget: int
    beside: int
    num_blocks: int = 4000
    max_num_seqs: int = 64
    step: int = 0
    prefill: list[int] = field(default_factory=list)  # prompt tokens that each step could take
    arrived: dict[str, int] = field(default_factory=dict)
    first_token: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.budgets = Budgets(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_seqs + self.budget,
            max_model_len=4096,
            prefill_beside_decodes=self.beside,
            prefill_per_request=0,
            context_price=0,
            long_prompt_tokens=SHORT,
        )
        self.scheduler = Scheduler(self.budgets, BlockPool(self.num_blocks, BLOCK_SIZE, None))

    def add(self, name: str, num_tokens: int, max_tokens: int = 1, priority: int = 0) -> None:
        """Let a request arrive before the next step."""
        command = make_request(
            [7] * num_tokens, request_id=name, max_tokens=max_tokens, priority=priority, ignore_eos=True
        )
        self.scheduler.add(Request(command, seed=0))
        self.arrived[name] = self.step

    def advance(self) -> None:
        """Run one step."""
        running = list(self.scheduler._running)
        num_decodes = sum(r.num_missing_tokens == 1 for r in running)
        self.prefill.append(self.budgets.prefill(num_decodes, num_waiting=0).tokens)
        plan = self.scheduler.schedule()
        result = StepResult([SampledToken(item.request_id, 5) for item in plan.requests if item.samples])
        self.step += 1
        for output in self.scheduler.update(result):
            self.first_token.setdefault(output.request_id, self.step)
        self.scheduler.check()

    def steps_to_first_token(self, name: str) -> int:
        return self.first_token[name] - self.arrived[name]


lengths = st.tuples(st.integers(1, SHORT), st.integers(1, 4))
budgets = st.integers(4, 40)


@given(
    budget=budgets,
    beside=budgets,
    num_decodes=st.integers(0, 8),
    burst=st.lists(st.integers(SHORT + 1, 400), min_size=1, max_size=8),
    shorts=st.lists(st.tuples(st.integers(1, SHORT), st.integers(0, 3)), min_size=1, max_size=12),
)
def test_short_prompts_wait_for_short_ones_only(
    budget: int, beside: int, num_decodes: int, burst: list[int], shorts: list[tuple[int, int]]
) -> None:
    """A short prompt's first token comes once three quarters of the prefill suffice for those before it."""
    simulation = Simulation(budget, beside)
    for number in range(num_decodes):
        simulation.add(f"decode {number}", 1, max_tokens=2000)
    simulation.advance()
    for number, length in enumerate(burst):
        simulation.add(f"long {number}", length)
    for number, (length, steps_before) in enumerate(shorts):
        for _ in range(steps_before):
            simulation.advance()
        simulation.add(f"short {number}", length)
    while len(simulation.first_token) < num_decodes + len(burst) + len(shorts):
        simulation.advance()
    least = min(simulation.prefill)
    for number in range(len(shorts)):
        before = [name for name in simulation.arrived if name.startswith("short")][: number + 1]
        ahead = sum(
            shorts[int(name.split()[1])][0]
            for name in before
            if simulation.first_token[name] > simulation.arrived[f"short {number}"]
        )
        bound = -(-ahead // (least - least // 4))
        assert simulation.steps_to_first_token(f"short {number}") <= bound


@given(
    budget=budgets,
    beside=budgets,
    burst=st.lists(st.integers(SHORT + 1, 100), min_size=1, max_size=3),
    length=st.integers(SHORT // 2, SHORT),
)
def test_long_prompts_keep_a_quarter_however_many_short_ones_come(
    budget: int, beside: int, burst: list[int], length: int
) -> None:
    simulation = Simulation(budget, beside)
    simulation.add("decode", 1, max_tokens=2000)
    simulation.advance()
    for number, tokens in enumerate(burst):
        simulation.add(f"long {number}", tokens)
    quarter = min(budget, beside) // 4
    bound = sum(-(-tokens // quarter) for tokens in burst)
    for number in range(bound):
        for index in range(-(-budget // length)):  # as many as fill every step
            simulation.add(f"short {number} {index}", length)
        simulation.advance()
    for number in range(len(burst)):
        assert f"long {number}" in simulation.first_token


@given(
    budget=st.integers(1, 20),
    requests=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(-2, 2), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
)
def test_a_request_never_waits_for_less_urgent_ones(
    budget: int, requests: list[tuple[int, int, int, int]]
) -> None:
    """With room for all, first tokens come as if the less urgent requests were not there, but for decodes."""

    def first_tokens(of: list[tuple[int, tuple[int, int, int, int]]]) -> dict[str, int]:
        simulation = Simulation(budget, budget)
        simulation.add("decode", 1, max_tokens=2000)  # so that every step has the same prefill
        simulation.advance()
        arrivals = [(sum(r[3] for r in requests[: number + 1]), number, r) for number, r in of]
        while len(simulation.first_token) < len(of) + 1:
            for at_step, number, (length, _, priority, _) in arrivals:
                if simulation.step - 1 == at_step:
                    simulation.add(str(number), length, priority=priority)
            simulation.advance()
        return simulation.first_token

    numbered = list(enumerate(requests))
    together = first_tokens(numbered)
    for urgent in {r[2] for r in requests}:
        alone = first_tokens([(number, r) for number, r in numbered if r[2] <= urgent])
        for number, request in numbered:
            if request[2] == urgent:
                assert together[str(number)] == alone[str(number)]


@given(
    num_blocks=st.integers(12, 30),
    part=st.integers(6, 10),
    lengths=st.lists(st.integers(1, SHORT), min_size=2, max_size=4),
)
def test_a_long_prompt_gets_its_blocks_although_short_ones_never_stop(
    num_blocks: int, part: int, lengths: list[int]
) -> None:
    simulation = Simulation(budget=40, beside=40, num_blocks=num_blocks, max_num_seqs=4)
    for number in range(80):
        if number == 1:
            simulation.add("long", num_blocks * BLOCK_SIZE * part // 10, max_tokens=1)
        for index, length in enumerate(lengths):
            simulation.add(f"{number} {index}", length, max_tokens=8)
        simulation.advance()
    assert "long" in simulation.first_token
