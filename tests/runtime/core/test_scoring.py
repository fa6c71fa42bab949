"""Prompts whose tokens are scored: what is computed of them, when their scores go out, what they may take."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from msgspec.structs import replace
from runtime_builders import FakeRunner, make_engine_config, make_request
from scheduler_builders import add, answer, finish_reasons, make_scheduler, shares, step

from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, ScoredPrompt, StepPlan, StepResult
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import FinishReason, RequestOutput, TokenLogprob


def scored(plan: StepPlan) -> dict[str, list[int]]:
    """Per request the prompt tokens that the step scores."""
    return {item.request_id: item.scored_token_ids for item in plan.scored}


def token_ids(outputs: list[RequestOutput], request_id: str) -> list[int]:
    """The prompt tokens whose scores are in the outputs."""
    return [s.token_id for o in outputs if o.request_id == request_id for s in o.prompt_logprobs]


def test_scores_go_out_chunk_by_chunk_and_the_last_with_the_first_token() -> None:
    scheduler = make_scheduler(budget=4)
    add(scheduler, 10, request_id="a", prompt_logprobs=0, max_tokens=2)
    steps = [step(scheduler) for _ in range(4)]
    assert [scored(plan).get("a") for plan, _ in steps] == [[2, 3, 4, 5], [6, 7, 8, 9], [10], None]
    assert [token_ids(outputs, "a") for _, outputs in steps] == [[2, 3, 4, 5], [6, 7, 8, 9], [10], []]
    assert [[output.token_ids for output in outputs] for _, outputs in steps] == [[[]], [[]], [[50]], [[50]]]
    assert not scheduler.has_work


@pytest.mark.parametrize("num_top", [None, 3])
def test_a_prompt_of_one_token_has_no_scores(num_top: int | None) -> None:
    scheduler = make_scheduler()
    add(scheduler, 1, request_id="a", max_tokens=1, prompt_logprobs=num_top)
    plan, outputs = step(scheduler)
    assert not plan.scored
    assert outputs == [RequestOutput(request_id="a", token_ids=[50], finish_reason=FinishReason.LENGTH)]


def test_a_scored_prompt_takes_no_prefix_hits_but_leaves_some() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="before", max_tokens=1)
    step(scheduler)
    add(scheduler, 9, request_id="a", prompt_logprobs=1, max_tokens=1)
    queries = scheduler.stats().prefix_queries
    assert shares(step(scheduler)[0]) == {"a": (0, 9)}
    assert scheduler.stats().prefix_queries == queries  # nothing was looked up

    other = make_scheduler()
    add(other, 9, request_id="a", prompt_logprobs=1, max_tokens=1)
    step(other)
    add(other, 9, request_id="behind", max_tokens=1)
    assert shares(step(other)[0]) == {"behind": (8, 1)}


def test_what_was_scored_before_a_preemption_is_not_scored_again() -> None:
    scheduler = make_scheduler(num_blocks=7, block_size=2, budget=6, beside=1, max_num_seqs=2)
    add(scheduler, [41, 42], request_id="old", max_tokens=10)
    step(scheduler)
    # A token of it per step beside the older one, which takes the last block and then needs one more.
    add(scheduler, 8, request_id="a", prompt_logprobs=0, max_tokens=2)
    outputs: list[RequestOutput] = []
    for _ in range(20):
        outputs += step(scheduler)[1]
    assert token_ids(outputs, "a") == [2, 3, 4, 5, 6, 7, 8]
    last = [output for output in outputs if output.finish_reason is not None]
    assert {output.request_id: output.num_preemptions for output in last} == {"old": 0, "a": 1}


def test_a_preempted_prompt_is_found_as_far_as_it_was_scored() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2, budget=5, max_num_seqs=2)
    add(scheduler, 12, request_id="a", prompt_logprobs=0, max_tokens=1)
    step(scheduler)
    scheduler._preempt(scheduler._running[0])
    scheduler.check()
    plan, outputs = step(scheduler)
    # Scores of tokens 2 to 6 are out: the row of the sixth is the next that is wanted.
    assert (shares(plan), scored(plan)) == ({"a": (4, 5)}, {"a": [7, 8, 9, 10]})
    assert plan.requests[0].first_scored == 1
    assert token_ids(outputs, "a") == [7, 8, 9, 10]


def test_scores_that_are_not_finite_fail_their_request_alone() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="bad", prompt_logprobs=0)
    add(scheduler, [40, 41], request_id="good", prompt_logprobs=0)
    plan = scheduler.schedule()
    result = answer(plan)
    bad = ScoredPrompt("bad", error="logits are not finite")
    outputs = scheduler.update(StepResult(result.sampled, scored=[bad, *result.scored[1:]]))
    scheduler.check()
    assert finish_reasons(outputs) == {"bad": FinishReason.ERROR, "good": None}
    assert (outputs[0].error, outputs[0].prompt_logprobs) == ("logits are not finite", [])
    assert token_ids(outputs, "good") == [41]
    add(scheduler, 9, request_id="again")  # what it left behind is not to be trusted
    assert shares(step(scheduler)[0])["again"] == (0, 9)


def test_a_result_without_the_scores_is_a_bug_and_stops_the_engine() -> None:
    sampled = [SampledToken("a", 50)]
    score = ScoredPrompt("a", [TokenLogprob(2, -1.0, [])])
    for result, message in (
        (StepResult(sampled), "lacks a prompt's scores"),
        (StepResult(sampled, scored=[ScoredPrompt("b")]), "order differs"),
        (StepResult(sampled, scored=[score, score]), "more scores"),
    ):
        scheduler = make_scheduler()
        add(scheduler, 2, request_id="a", prompt_logprobs=0)
        scheduler.schedule()
        with pytest.raises(AssertionError, match=message):
            scheduler.update(result)


def test_scored_tokens_of_a_step_are_limited() -> None:
    scheduler = make_scheduler(scoring_bytes=4 * 5)  # a logit of each of five tokens
    add(scheduler, 12, request_id="a", prompt_logprobs=0, max_tokens=1)
    add(scheduler, [40] * 4, request_id="b", max_tokens=1)
    plans = [step(scheduler)[0] for _ in range(3)]
    assert [shares(plan) for plan in plans] == [{"a": (0, 5)}, {"a": (5, 5)}, {"a": (10, 2), "b": (0, 4)}]
    assert [len(scored(plan)["a"]) for plan in plans] == [5, 5, 1]


def test_likely_tokens_count_and_one_token_is_scored_in_any_case() -> None:
    scheduler = make_scheduler(scoring_bytes=300)
    add(scheduler, 5, request_id="a", prompt_logprobs=1, max_tokens=1)
    assert shares(step(scheduler)[0]) == {"a": (0, 2)}
    scheduler.abort("a")
    add(scheduler, 5, request_id="b", prompt_logprobs=10, max_tokens=1)
    assert shares(step(scheduler)[0]) == {"b": (0, 1)}


def test_a_prompt_that_scores_hold_up_leaves_its_tokens_to_the_other_lane() -> None:
    scheduler = make_scheduler(scoring_bytes=4 * 3, long=6)
    add(scheduler, 6, request_id="short", prompt_logprobs=0, max_tokens=1)
    add(scheduler, [40] * 20, request_id="long", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"short": (0, 3), "long": (0, 13)}


def test_long_scored_prompts_keep_a_quarter_beside_short_ones() -> None:
    scheduler = make_scheduler(scoring_bytes=4 * 8, long=6, num_blocks=64)
    add(scheduler, 30, request_id="long", prompt_logprobs=0, max_tokens=1)
    for name in ("b", "c", "d"):
        add(scheduler, [ord(name)] * 6, request_id=name, prompt_logprobs=0, max_tokens=1)
    plans = [step(scheduler)[0] for _ in range(2)]
    assert shares(plans[0]) == {"b": (0, 6), "c": (0, 1), "long": (0, 2)}
    assert shares(plans[1])["long"] == (2, 2)


def test_a_wait_is_told_with_the_first_token_not_with_the_first_scores() -> None:
    config = make_engine_config(max_num_seqs=2, max_num_batched_tokens=4)
    engine = Engine(FakeRunner(), config, clock=lambda: 12.0)
    request = make_request(num_prompt_tokens=6, prompt_logprobs=0, max_tokens=1)
    engine.add(replace(request, arrival_s=10.0))
    outputs = engine.step().outputs + engine.step().outputs
    assert [(len(o.prompt_logprobs), o.queue_s) for o in outputs] == [(4, None), (1, 2.0)]


def run(scheduler: Scheduler, runner: FakeRunner) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    for _ in range(1000):
        if not scheduler.has_work:
            return outputs
        for output in scheduler.update(runner.step(scheduler.schedule())):
            outputs.setdefault(output.request_id, []).append(output)
        scheduler.check()
    raise AssertionError("it does not end")


@given(
    prompts=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=20),
            st.sampled_from([None, 0, 2]),
            st.integers(1, 12),
        ),
        min_size=1,
        max_size=6,
    ),
    num_blocks=st.integers(9, 24),
    scoring_bytes=st.sampled_from([1, 12, 300, 4000]),
    drafts=st.sampled_from([0, 0, 8]),
)
def test_each_score_comes_once_in_order_with_drafts_and_preemptions(
    prompts: list[tuple[list[int], int | None, int]], num_blocks: int, scoring_bytes: int, drafts: int
) -> None:
    runner = FakeRunner(
        num_blocks=num_blocks, block_size=4, next_token=lambda r, _: (r.num_computed_tokens) % 3
    )
    scheduler = make_scheduler(
        num_blocks=num_blocks, budget=16, scoring_bytes=scoring_bytes, drafts=drafts, long=8
    )
    for index, (prompt, num_top, max_tokens) in enumerate(prompts):
        add(scheduler, prompt, request_id=str(index), prompt_logprobs=num_top, max_tokens=max_tokens)
    outputs = run(scheduler, runner)
    event(f"preempted: {scheduler.stats().num_preemptions > 0}")
    for index, (prompt, num_top, _) in enumerate(prompts):
        scores = [score for output in outputs[str(index)] for score in output.prompt_logprobs]
        assert [score.token_id for score in scores] == (prompt[1:] if num_top is not None else [])
        assert all(len(score.top) == num_top for score in scores)
    for plan in runner.plans:
        costs = [(item.num_scored, 4 + 128 * (item.sampling.prompt_logprobs or 0)) for item in plan.scored]
        most = max((cost for _, cost in costs), default=0)
        assert sum(count * cost for count, cost in costs) <= scoring_bytes + 2 * most
