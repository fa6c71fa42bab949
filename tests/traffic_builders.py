"""Random requests and budgets for property tests of the engine, and how they are run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from runtime_builders import FakeRunner, make_engine_config, make_request

from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AddRequest, RequestOutput, TokenLogprob

VOCAB_SIZE = 12  # small, so that eos, stop tokens and repeated prefixes are common
EOS = 0


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it arrives, and the step before which its client leaves, if ever."""

    request: AddRequest
    at_step: int
    abort_at_step: int | None


@dataclass(frozen=True)
class Machine:
    """Budgets of one engine."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    extra_budget: int
    prefix_caching: bool
    beside: int = 1000
    per_request: int = 0
    price: int = 0
    long: int = 1000
    scoring_bytes: int = 2**20

    def engine(self, runner: FakeRunner, **options: Any) -> Engine:
        """An engine with these budgets around a fresh runner."""
        config = make_engine_config(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_seqs + self.extra_budget,
            prefix_caching=self.prefix_caching,
            max_prefill_tokens_beside_decodes=self.beside,
            prefill_per_request=self.per_request,
            prefill_context_price=self.price,
            long_prompt_tokens=self.long,
            **options,
        )
        engine = Engine(runner, config, hash_key=b"k" * 16)
        budgets = replace(engine.scheduler._budgets, scoring_bytes=self.scoring_bytes)
        engine.scheduler = Scheduler(budgets, engine.scheduler._pool)
        return engine

    def runner(self) -> FakeRunner:
        """A runner with this many blocks."""
        return FakeRunner(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=VOCAB_SIZE,
            max_model_len=48,
            eos_token_ids=(EOS,),
        )


machines = st.builds(
    Machine,
    num_blocks=st.integers(1, 40),
    block_size=st.integers(1, 5),
    max_num_seqs=st.integers(1, 6),
    extra_budget=st.integers(0, 20),
    prefix_caching=st.sampled_from([True, True, True, False]),
    beside=st.integers(1, 24),
    per_request=st.integers(0, 3),
    price=st.sampled_from([0, 0, 1, 10]),
    long=st.sampled_from([1, 3, 8, 1000]),
    scoring_bytes=st.sampled_from([2**20, 2**20, 1, 200, 500]),
)


# So few blocks for so many requests that they run out of them.
tight_machines = st.builds(
    Machine,
    num_blocks=st.integers(6, 16),
    block_size=st.integers(1, 3),
    max_num_seqs=st.integers(3, 6),
    extra_budget=st.integers(8, 20),
    prefix_caching=st.booleans(),
    scoring_bytes=st.sampled_from([2**20, 200]),
)


@st.composite
def arrivals(draw: st.DrawFn, at_least: int = 2) -> list[Arrival]:
    """Up to ten requests; their prompts are cuts of one text, with or without an own end."""
    text = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=4, max_size=24))
    drawn = []
    for index in range(draw(st.integers(at_least, 10))):
        cut = draw(st.sampled_from([len(text), len(text), len(text) // 2, 0]))
        own = draw(st.sampled_from([[], [], [1], [2, 3, 4, 5]]))
        prompt = text[:cut] + own
        max_tokens = draw(st.integers(1, 16))
        request = make_request(
            prompt,
            request_id=f"r{index}",
            cache_salt=draw(st.sampled_from(["", "", "tenant"])),
            priority=draw(st.sampled_from([0, 0, 0, -1, 2])),
            max_tokens=max_tokens,
            min_tokens=draw(st.integers(0, max_tokens)),
            ignore_eos=draw(st.booleans()),
            stop_token_ids=draw(st.sampled_from([(), (1,), (2, 3)])),
            presence_penalty=draw(st.sampled_from([0.0] * 5 + [0.5])),  # FakeRunner takes no notice
            temperature=draw(st.sampled_from([0.0, 1.0])),
            seed=draw(st.integers(0, 3)),
            prompt_logprobs=draw(st.sampled_from([None, None, None, 0, 2])),
        )
        at_step = draw(st.integers(0, 8))
        abort_after = draw(st.none() | st.integers(0, 8))
        drawn.append(Arrival(request, at_step, None if abort_after is None else at_step + abort_after))
    return drawn


def decoding_ids(engine: Engine) -> set[str]:
    """Running requests that miss one token, which the step in flight samples if there is one."""
    is_idle = engine.scheduler.num_in_flight == 0
    return {
        r.request_id
        for r in engine.scheduler._running
        if r.num_missing_tokens == 1 and (is_idle or r.num_pending_tokens)
    }


def run(engine: Engine, traffic: list[Arrival]) -> dict[str, list[RequestOutput]]:
    """Feed the engine as the arrivals say, checking it after every step, until nothing is left."""
    outputs: defaultdict[str, list[RequestOutput]] = defaultdict(list)
    last_event = max(arrival.abort_at_step or arrival.at_step for arrival in traffic)
    # Nothing may need more: each step brings the oldest request at least one token forward, and asynchronous
    # scheduling takes a step more to see an end and to start the next.
    max_steps = (
        last_event
        + 2
        + sum(
            len(arrival.request.prompt_token_ids) + arrival.request.sampling.max_tokens + 3
            for arrival in traffic
        )
    )
    for number in range(max_steps):
        for arrival in traffic:
            if arrival.at_step == number:
                engine.add(arrival.request)
            if arrival.abort_at_step == number:
                engine.abort(arrival.request.request_id)
        decoding, num_preemptions = decoding_ids(engine), engine.scheduler.stats().num_preemptions
        for output in engine.step().outputs:
            outputs[output.request_id].append(output)
            decoding.discard(output.request_id)
        # Who is preempted may start again in the second of two steps that are planned at once.
        may_restart = engine._max_in_flight > 1 and engine.scheduler.stats().num_preemptions > num_preemptions
        assert may_restart or not (decoding & decoding_ids(engine)), "a decode waited for something"
        engine.scheduler.check()
        if number > last_event and not engine.has_work:
            break
    assert not engine.has_work, f"requests are left after {max_steps} steps"
    return outputs


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    """All tokens of a request."""
    return [token for output in outputs for token in output.token_ids]


def scores_of(outputs: list[RequestOutput]) -> list[TokenLogprob]:
    """All scores of a request's prompt."""
    return [score for output in outputs for score in output.prompt_logprobs]


def assert_scored_once(arrival: Arrival, outputs: list[RequestOutput], alone: list[RequestOutput]) -> None:
    """Check the scores of a request's prompt: each token's once, in order, and as it would get them alone."""
    scores, prompt = scores_of(outputs), arrival.request.prompt_token_ids
    is_scored = arrival.request.sampling.prompt_logprobs is not None
    assert [score.token_id for score in scores] == (prompt[1:] if is_scored else [])[: len(scores)]
    both = min(len(scores), len(scores_of(alone)))  # one whose first token fails is cut otherwise
    assert scores[:both] == scores_of(alone)[:both]
    if tokens_of(outputs):
        first = next(index for index, output in enumerate(outputs) if output.token_ids)
        assert len(scores_of(outputs[: first + 1])) == (len(prompt) - 1 if is_scored else 0)
        assert not scores_of(outputs[first + 1 :])
