from collections.abc import Sequence
from typing import Any

import pytest
from runtime_builders import make_request

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, StepPlan, StepResult
from stoker_runtime.messages import FinishReason, RequestOutput, TokenLogprob

EOS = 99


def make_scheduler(
    *,
    max_num_seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 64,
    num_blocks: int = 32,
    block_size: int = 4,
    caching: bool = True,
    beside: int = 1000,
    per_request: int = 0,
    price: int = 0,
    long: int = 1000,
) -> Scheduler:
    """A scheduler that neither saves budget for decodes nor tells long prompts from short ones."""
    budgets = Budgets(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        prefill_beside_decodes=beside,
        prefill_per_request=per_request,
        context_price=price,
        long_prompt_tokens=long,
    )
    return Scheduler(budgets, BlockPool(num_blocks, block_size, b"k" * 16 if caching else None))


def add(
    scheduler: Scheduler,
    prompt: list[int] | int,
    *,
    request_id: str,
    cache_salt: str = "",
    priority: int = 0,
    **sampling: Any,
) -> None:
    tokens = list(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
    command = make_request(
        tokens, request_id=request_id, cache_salt=cache_salt, priority=priority, **sampling
    )
    scheduler.add(Request(command, seed=0, eos_token_ids=(EOS,)))


def answer(plan: StepPlan, token_id: int = 50) -> StepResult:
    return StepResult([SampledToken(item.request_id, token_id) for item in plan.requests if item.samples])


def step(scheduler: Scheduler, token_id: int = 50) -> tuple[StepPlan, list[RequestOutput]]:
    plan = scheduler.schedule()
    outputs = scheduler.update(answer(plan, token_id))
    scheduler.check()
    return plan, outputs


def shares(plan: StepPlan) -> dict[str, tuple[int, int]]:
    """Per request: where its share of the step starts, and how many tokens it computes."""
    return {item.request_id: (item.num_computed_tokens, len(item.token_ids)) for item in plan.requests}


def finish_reasons(outputs: Sequence[RequestOutput]) -> dict[str, FinishReason | None]:
    return {output.request_id: output.finish_reason for output in outputs}


@pytest.mark.parametrize(
    ("budgets", "named"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 8, "budget": 7}, "max_num_seqs"),
        ({"beside": 0}, "prefill_beside_decodes"),
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


def test_urgent_requests_start_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id, priority in (("a", 5), ("b", 0), ("c", -5), ("d", 0), ("e", -5)):
        add(scheduler, [7], request_id=request_id, priority=priority, max_tokens=1)
    assert [list(shares(step(scheduler)[0])) for _ in range(5)] == [["c"], ["e"], ["b"], ["d"], ["a"]]


def test_urgent_prompt_neither_stops_nor_delays_a_running_request() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=8)
    add(scheduler, 3, request_id="idle", priority=9)
    add(scheduler, 3, request_id="too", priority=9, max_tokens=2)
    step(scheduler)
    add(scheduler, 30, request_id="urgent", priority=-9)
    assert shares(step(scheduler)[0]) == {"idle": (3, 1), "too": (3, 1)}  # both slots are taken
    assert shares(step(scheduler)[0]) == {"idle": (4, 1), "urgent": (0, 7)}


def test_urgent_prompt_is_computed_before_one_that_was_begun() -> None:
    scheduler = make_scheduler(budget=8)
    add(scheduler, 20, request_id="begun")
    step(scheduler)
    add(scheduler, [40] * 9, request_id="urgent", priority=-1)
    plans = [shares(step(scheduler)[0]) for _ in range(4)]
    assert plans == [
        {"urgent": (0, 8)},
        {"urgent": (8, 1), "begun": (8, 7)},
        {"urgent": (9, 1), "begun": (15, 5)},
        {"urgent": (10, 1), "begun": (20, 1)},
    ]


def test_nobody_starts_while_somebody_more_urgent_waits_for_blocks() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2)
    add(scheduler, 8, request_id="running", max_tokens=2)
    step(scheduler)
    add(scheduler, [7] * 9, request_id="urgent", priority=-1, max_tokens=1)
    add(scheduler, [8], request_id="small", max_tokens=1)
    assert list(shares(step(scheduler)[0])) == ["running"]
    assert list(shares(step(scheduler)[0])) == ["urgent", "small"]


@pytest.mark.parametrize(
    ("num_decodes", "options", "prefill"),
    [
        pytest.param(0, {"beside": 3}, 20, id="alone-all-of-the-budget"),
        pytest.param(1, {"beside": 3}, 3, id="beside-a-decode-little"),
        pytest.param(2, {"beside": 3, "per_request": 2}, 6, id="more-for-each-that-decodes-or-waits"),
        pytest.param(2, {"beside": 3, "per_request": 2, "max_num_seqs": 3}, 6, id="and-may-run"),
        pytest.param(2, {"beside": 100}, 18, id="never-above-the-budget"),
    ],
)
def test_prompt_tokens_beside_decodes(num_decodes: int, options: dict[str, int], prefill: int) -> None:
    scheduler = make_scheduler(budget=20, **options)  # type: ignore[arg-type]
    for number in range(num_decodes):
        add(scheduler, [number], request_id=str(number))
    if num_decodes:
        step(scheduler)
    add(scheduler, [9] * 40, request_id="long")
    assert shares(step(scheduler)[0])["long"] == (0, prefill)


def test_prompt_tokens_beside_decodes_count_more_the_more_they_attend_to() -> None:
    scheduler = make_scheduler(budget=30, beside=12, price=8)
    add(scheduler, [7], request_id="decode")
    step(scheduler)
    add(scheduler, [9] * 40, request_id="long", max_tokens=1)
    chunks = [shares(step(scheduler)[0])["long"] for _ in range(4)]
    assert chunks == [(0, 12), (12, 4), (16, 4), (20, 3)]
    scheduler.abort("decode")
    assert shares(step(scheduler)[0]) == {"long": (23, 17)}


def test_short_prompts_overtake_a_long_one_and_leave_it_a_quarter() -> None:
    scheduler = make_scheduler(max_num_seqs=8, budget=16, long=8, max_model_len=200)
    add(scheduler, 100, request_id="long")
    assert shares(step(scheduler)[0]) == {"long": (0, 16)}
    for number in range(4):
        add(scheduler, [40 + number] * 8, request_id=f"short {number}", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"short 0": (0, 8), "short 1": (0, 4), "long": (16, 4)}
    assert shares(step(scheduler)[0]) == {"short 1": (4, 4), "short 2": (0, 8), "long": (20, 4)}
    assert shares(step(scheduler)[0]) == {"short 3": (0, 8), "long": (24, 8)}


def test_one_long_prompt_after_the_other() -> None:
    scheduler = make_scheduler(max_num_seqs=8, budget=16, long=8)
    for number in range(3):
        add(scheduler, [40 + number] * 20, request_id=f"long {number}", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"long 0": (0, 16)}
    assert shares(step(scheduler)[0]) == {"long 0": (16, 4), "long 1": (0, 12)}
    add(scheduler, [1, 2], request_id="short", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"short": (0, 2), "long 1": (12, 8), "long 2": (0, 6)}


def test_long_prompt_with_a_known_start_is_short() -> None:
    scheduler = make_scheduler(budget=16, long=8)
    add(scheduler, 16, request_id="before", max_tokens=1)
    step(scheduler)
    add(scheduler, [40] * 20, request_id="long", max_tokens=1)
    add(scheduler, 18, request_id="again", max_tokens=1)
    assert shares(step(scheduler)[0]) == {"again": (16, 2), "long": (0, 14)}


def test_prompt_whose_known_start_is_gone_waits_as_a_long_one() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=16, long=8, num_blocks=6)
    add(scheduler, 16, request_id="before", max_tokens=1)
    step(scheduler)
    for name, token in (("a", 40), ("b", 41)):
        add(scheduler, [token] * 11, request_id=name, max_tokens=2)
    add(scheduler, 18, request_id="again", max_tokens=1)  # short, as long as nobody takes its blocks
    while scheduler.has_work:
        plan, _ = step(scheduler)
        if "again" in shares(plan):
            break
    assert shares(plan)["again"][1] > 8


def test_long_prompt_that_finds_no_room_is_overtaken_only_so_often() -> None:
    scheduler = make_scheduler(max_num_seqs=3, budget=16, long=8, num_blocks=12)
    add(scheduler, [40] * 8, request_id="running", max_tokens=40)
    step(scheduler)
    add(scheduler, [41] * 39, request_id="long", max_tokens=1)  # 10 of the 9 blocks that are left
    started: list[str] = []
    for number in range(9):
        add(scheduler, [number], request_id=f"short {number}", max_tokens=1)
        started += [name for name, (start, _) in shares(step(scheduler)[0]).items() if start == 0]
    assert started == ["short 0", "short 1", "short 2"]
    scheduler.abort("running")
    assert list(shares(step(scheduler)[0])) == ["short 3", "long"]


def test_preempts_the_least_urgent_request_and_of_those_the_newest() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=2)
    for request_id, priority in (("low", 1), ("lower", 2), ("newest", 2)):
        add(scheduler, [ord(request_id[0])], request_id=request_id, priority=priority, max_tokens=9)
    add(scheduler, [1, 2], request_id="urgent", priority=-1, max_tokens=9)
    ran = [list(shares(step(scheduler)[0])) for _ in range(6)]
    everybody = ["urgent", "low", "lower", "newest"]
    assert ran == [everybody, everybody, everybody, everybody[:3], everybody[:2], everybody[:2]]


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


def test_stats_count_steps_and_tokens() -> None:
    scheduler = make_scheduler(num_blocks=8)
    add(scheduler, 5, request_id="a")
    step(scheduler)
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (1, 0, 0.25)
    assert (stats.num_steps, stats.num_scheduled_tokens) == (2, 6)
