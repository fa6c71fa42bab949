from typing import Any

import pytest
from scheduler_builders import EOS, add, answer, finish_reasons, make_scheduler, shares, step

from stoker_runtime.core.step import SampledToken, StepResult
from stoker_runtime.messages import FinishReason, RequestOutput, TokenLogprob


@pytest.mark.parametrize(
    ("budgets", "named"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 8, "budget": 7}, "max_num_seqs"),
        ({"beside": 0}, "prefill_beside_decodes"),
        ({"scoring_bytes": 0}, "scoring_bytes"),
    ],
)
def test_refuses_budgets_that_would_leave_a_request_waiting_for_ever(
    budgets: dict[str, int], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        make_scheduler(**budgets)  # type: ignore[arg-type]


def test_prompt_then_one_token_per_step_until_max_tokens() -> None:
    scheduler = make_scheduler()
    add(scheduler, 5, request_id="a", max_tokens=2)

    plan, outputs = step(scheduler)
    assert shares(plan) == {"a": (0, 5)}
    assert outputs == [RequestOutput(request_id="a", token_ids=[50])]
    plan, outputs = step(scheduler)
    assert plan.requests[0].token_ids == [50]
    assert shares(plan) == {"a": (5, 1)}
    assert outputs == [RequestOutput(request_id="a", token_ids=[50], finish_reason=FinishReason.LENGTH)]
    assert not scheduler.has_work


def test_long_prompt_is_computed_in_chunks_and_samples_only_at_its_end() -> None:
    scheduler = make_scheduler(budget=8)
    add(scheduler, 20, request_id="a")
    chunks = [step(scheduler) for _ in range(3)]
    assert [shares(plan) for plan, _ in chunks] == [{"a": (0, 8)}, {"a": (8, 8)}, {"a": (16, 4)}]
    assert [[item.samples for item in plan.requests] for plan, _ in chunks] == [[False], [False], [True]]
    assert [len(outputs) for _, outputs in chunks] == [0, 0, 1]


def test_decodes_get_their_token_before_a_prefill_chunk() -> None:
    scheduler = make_scheduler(budget=8)
    add(scheduler, [7, 8], request_id="a")
    step(scheduler)
    add(scheduler, 30, request_id="long")
    assert shares(step(scheduler)[0]) == {"a": (2, 1), "long": (0, 7)}
    assert shares(step(scheduler)[0]) == {"a": (3, 1), "long": (7, 7)}


def test_waiting_requests_are_admitted_in_order_up_to_max_num_seqs() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in "abc":
        add(scheduler, [ord(request_id)], request_id=request_id, max_tokens=2)
    assert list(shares(step(scheduler)[0])) == ["a", "b"]
    assert scheduler.stats().num_waiting == 1
    step(scheduler)
    assert list(shares(step(scheduler)[0])) == ["c"]


def test_second_prompt_starts_after_the_blocks_it_shares_with_the_first() -> None:
    scheduler = make_scheduler()
    add(scheduler, [1, 2, 3, 4, 5, 6, 7, 8, 9], request_id="a", max_tokens=1)
    step(scheduler)
    add(scheduler, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], request_id="b", max_tokens=1)
    plan, outputs = step(scheduler)
    assert shares(plan) == {"b": (8, 2)}
    assert outputs[0].num_cached_tokens == 8
    assert scheduler.stats().prefix_queries == 19
    assert scheduler.stats().prefix_hits == 8


def test_prefix_hit_never_covers_the_whole_prompt() -> None:
    scheduler = make_scheduler()
    for request_id in "ab":
        add(scheduler, 8, request_id=request_id, max_tokens=1)
        plan, _ = step(scheduler)
    assert shares(plan) == {"b": (4, 4)}


def test_requests_admitted_in_one_step_share_what_the_first_of_them_computes() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="a")
    add(scheduler, 9, request_id="b")
    plan, _ = step(scheduler)
    assert shares(plan) == {"a": (0, 9), "b": (8, 1)}
    first, second = plan.requests
    assert first.block_ids[:2] == second.block_ids[:2]
    assert first.block_ids[2] != second.block_ids[2]


def test_block_that_was_left_half_computed_is_not_found() -> None:
    scheduler = make_scheduler(budget=6)
    add(scheduler, 12, request_id="gone")
    assert shares(step(scheduler)[0]) == {"gone": (0, 6)}
    scheduler.abort("gone")
    add(scheduler, 12, request_id="a")
    assert shares(step(scheduler)[0]) == {"a": (4, 6)}


def test_requests_with_other_salts_share_nothing() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="a", cache_salt="one", max_tokens=1)
    step(scheduler)
    add(scheduler, 9, request_id="b", cache_salt="two", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"b": (0, 9)}


def test_without_prefix_caching_every_prompt_is_computed() -> None:
    scheduler = make_scheduler(caching=False)
    for request_id in "ab":
        add(scheduler, 9, request_id=request_id, max_tokens=1)
        plan, _ = step(scheduler)
    assert shares(plan) == {"b": (0, 9)}
    assert scheduler.stats().prefix_queries == 0


def test_preempts_the_newest_request_when_blocks_run_out_and_recomputes_it_first() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=2, budget=16)
    add(scheduler, [1, 2, 3], request_id="old", max_tokens=4)
    step(scheduler)
    add(scheduler, [7], request_id="new", max_tokens=9)
    add(scheduler, [8], request_id="later", max_tokens=1)
    plan, _ = step(scheduler)
    assert list(shares(plan)) == ["old", "new"]  # "later" would leave them no block to grow into
    step(scheduler)
    plan, _ = step(scheduler)  # "old" takes the block that "new" would have needed
    assert list(shares(plan)) == ["old"]
    assert scheduler.stats().num_preemptions == 1
    assert scheduler.stats().num_waiting == 2
    plan, _ = step(scheduler)
    assert list(shares(plan)) == ["new", "later"]
    assert plan.requests[0].token_ids[-1] == 50
    assert plan.requests[0].output_token_ids[:2] == [50, 50]


def test_preempted_request_waits_until_it_fits_beside_the_older_ones() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=2)
    add(scheduler, [1, 2], request_id="a", max_tokens=5)
    add(scheduler, [5], request_id="b", max_tokens=4)
    plans = [list(shares(step(scheduler)[0])) for _ in range(6)]
    assert plans == [["a", "b"], ["a", "b"], ["a"], ["a"], ["a"], ["b"]]
    assert scheduler.stats().num_preemptions == 1


def test_abort_frees_blocks_before_the_next_step() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="a")
    add(scheduler, 9, request_id="b")
    step(scheduler)
    scheduler.abort("a")
    scheduler.abort("b")
    scheduler.check()
    assert scheduler.stats().kv_usage == 0.0
    plan, outputs = step(scheduler)
    assert plan.requests == []
    assert finish_reasons(outputs) == {"a": FinishReason.ABORT, "b": FinishReason.ABORT}
    assert not scheduler.has_work


def test_abort_while_a_step_runs_drops_its_token() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a")
    add(scheduler, 3, request_id="b")
    plan = scheduler.schedule()
    scheduler.abort("a")
    outputs = scheduler.update(answer(plan))
    scheduler.check()
    assert finish_reasons(outputs) == {"a": FinishReason.ABORT, "b": None}


def test_abort_of_an_unknown_or_waiting_request() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    add(scheduler, 3, request_id="a")
    add(scheduler, 3, request_id="b")
    step(scheduler)
    scheduler.abort("b")
    scheduler.abort("nobody")
    assert finish_reasons(step(scheduler)[1]) == {"a": None, "b": FinishReason.ABORT}


def test_abort_all_ends_everything() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id in "ab":
        add(scheduler, 3, request_id=request_id)
    step(scheduler)
    scheduler.abort_all()
    assert finish_reasons(step(scheduler)[1]) == {"a": FinishReason.ABORT, "b": FinishReason.ABORT}


@pytest.mark.parametrize(
    ("sampling", "token_id", "reason"),
    [
        pytest.param({}, EOS, FinishReason.STOP, id="eos"),
        pytest.param({"ignore_eos": True}, EOS, None, id="eos-ignored"),
        pytest.param({"stop_token_ids": (7,)}, 7, FinishReason.STOP, id="stop-token"),
        pytest.param(
            {"stop_token_ids": (EOS,), "ignore_eos": True}, EOS, FinishReason.STOP, id="eos-as-stop-token"
        ),
        pytest.param({"max_tokens": 1}, 7, FinishReason.LENGTH, id="max-tokens"),
        pytest.param({"max_tokens": 1}, EOS, FinishReason.STOP, id="eos-at-max-tokens"),
        pytest.param({}, 7, None, id="goes-on"),
    ],
)
def test_what_ends_a_request(sampling: dict[str, Any], token_id: int, reason: FinishReason | None) -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", **sampling)
    _, (output,) = step(scheduler, token_id)
    assert output.finish_reason is reason
    assert output.token_ids == [token_id]
    assert output.stop_token_id == (token_id if reason is FinishReason.STOP else None)


def test_ends_at_max_model_len_even_when_max_tokens_asks_for_more() -> None:
    scheduler = make_scheduler(max_model_len=5)
    add(scheduler, 4, request_id="a", max_tokens=9)
    assert finish_reasons(step(scheduler)[1]) == {"a": FinishReason.LENGTH}


def test_end_tokens_are_masked_before_min_tokens() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", min_tokens=2, stop_token_ids=(7,))
    masked = [step(scheduler)[0].requests[0].masked_token_ids for _ in range(3)]
    assert masked == [(7, EOS), (7, EOS), ()]


def test_ignored_eos_is_not_masked() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", min_tokens=2, ignore_eos=True)
    assert step(scheduler)[0].requests[0].masked_token_ids == ()


def test_logprob_reaches_the_output() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a", logprobs=1)
    scheduler.schedule()
    logprob = TokenLogprob(token_id=5, logprob=-0.1, top=[(5, -0.1)])
    (output,) = scheduler.update(StepResult([SampledToken("a", 5, logprob)]))
    assert output.logprobs == [logprob]


def test_failed_request_ends_alone_and_its_blocks_are_not_found_again() -> None:
    scheduler = make_scheduler()
    add(scheduler, 9, request_id="bad")
    add(scheduler, [40, 41], request_id="good")
    scheduler.schedule()
    result = StepResult([SampledToken("bad", -1, error="logits are not finite"), SampledToken("good", 5)])
    outputs = scheduler.update(result)
    scheduler.check()
    assert finish_reasons(outputs) == {"bad": FinishReason.ERROR, "good": None}
    assert outputs[0].error == "logits are not finite"
    add(scheduler, 9, request_id="again")
    assert shares(step(scheduler)[0])["again"] == (0, 9)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        pytest.param(0, {}, "no tokens", id="empty-prompt"),
        pytest.param(64, {}, "at most 63", id="longer-than-the-model"),
        pytest.param(20, {"num_blocks": 4}, "whole KV cache holds 16", id="larger-than-the-pool"),
    ],
)
def test_request_that_can_never_run_ends_with_an_error(
    prompt: int, options: dict[str, int], message: str
) -> None:
    scheduler = make_scheduler(**options)  # type: ignore[arg-type]
    add(scheduler, prompt, request_id="a")
    plan, (output,) = step(scheduler)
    assert plan.requests == []
    assert output.finish_reason is FinishReason.ERROR
    assert message in str(output.error)
    assert not scheduler.has_work


def test_id_that_is_in_use_is_refused_and_the_first_request_goes_on() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a")
    add(scheduler, 3, request_id="a")
    _, outputs = step(scheduler)
    assert [(output.finish_reason, output.token_ids) for output in outputs] == [
        (FinishReason.ERROR, []),
        (None, [50]),
    ]


def test_request_that_outgrows_the_pool_ends_with_an_error_and_others_go_on() -> None:
    scheduler = make_scheduler(num_blocks=2, block_size=2)
    add(scheduler, [1, 2, 3], request_id="a", max_tokens=50)
    add(scheduler, [9], request_id="b", max_tokens=1)
    seen: list[RequestOutput] = []
    for _ in range(4):
        seen += step(scheduler)[1]
    assert [output.finish_reason for output in seen if output.request_id == "a"] == [
        None,
        None,
        FinishReason.ERROR,
    ]
    assert [output.finish_reason for output in seen if output.request_id == "b"] == [FinishReason.LENGTH]
    assert not scheduler.has_work


def test_result_that_answers_another_plan_is_a_bug_and_stops_the_engine() -> None:
    scheduler = make_scheduler()
    add(scheduler, 3, request_id="a")
    scheduler.schedule()
    with pytest.raises(AssertionError, match="order differs"):
        scheduler.update(StepResult([SampledToken("b", 5)]))


def test_a_step_that_failed_ends_its_requests_and_leaves_nothing_to_find() -> None:
    scheduler = make_scheduler(budget=10, max_num_seqs=3)
    add(scheduler, 4, request_id="a")
    step(scheduler)
    add(scheduler, [7] * 8, request_id="b")  # all but its last block is published when it is scheduled
    add(scheduler, [8] * 20, request_id="c")  # in the middle of its prompt: asks for no token
    add(scheduler, 3, request_id="d")  # not in the step
    plan = scheduler.schedule()
    assert [item.request_id for item in plan.requests] == ["a", "b", "c"]
    assert not plan.requests[2].samples
    scheduler.abort("b")
    outputs = scheduler.update(StepResult(error="out of memory"))
    scheduler.check()
    assert finish_reasons(outputs) == {
        "a": FinishReason.ERROR,
        "b": FinishReason.ABORT,
        "c": FinishReason.ERROR,
    }
    assert {output.error for output in outputs} == {"out of memory", None}
    add(scheduler, [7] * 8, request_id="e")
    plan, outputs = step(scheduler)
    assert shares(plan) == {"d": (0, 3), "e": (0, 7)}
    assert finish_reasons(outputs) == {"d": None}


def test_stats_count_steps_and_tokens() -> None:
    scheduler = make_scheduler(num_blocks=8)
    add(scheduler, 5, request_id="a")
    step(scheduler)
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (1, 0, 0.25)
    assert (stats.num_steps, stats.num_scheduled_tokens) == (2, 6)


def test_stats_tell_how_many_a_step_computed_though_they_ended_with_it() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for name in ("a", "b", "c"):
        add(scheduler, 3, request_id=name, max_tokens=1)
    step(scheduler)

    stats = scheduler.stats()
    assert (stats.num_in_step, stats.num_running, stats.num_waiting) == (2, 0, 1)
