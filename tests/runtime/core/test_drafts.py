"""Drafts: what is guessed, and that the tokens are the same with and without guesses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import FakeRunner, make_request

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.drafts import Drafts, NgramIndex
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.messages import AddRequest, RequestOutput


def guess(token_ids: list[int], count: int = 4) -> list[int]:
    index = NgramIndex()
    index.extend(token_ids)
    return index.propose(token_ids, count)


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1], id="what-followed-the-same-two-tokens"),
        pytest.param([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], [4, 9, 1, 2], id="the-last-place-counts"),
        pytest.param([1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3], [7, 5, 2, 3], id="a-longer-agreement-counts-more"),
        pytest.param([1, 2, 3, 4], [], id="nothing-agrees"),
        pytest.param([1, 1], [], id="one-token-is-too-little"),
        pytest.param([1, 1, 1], [1, 1, 1, 1], id="a-run-goes-on"),
        pytest.param([7, 8, 9, 7, 8, 9, 7], [8, 9, 7, 8], id="a-circle-goes-on"),
        pytest.param([], [], id="no-tokens"),
    ],
)
def test_the_guess_is_what_followed_before(token_ids: list[int], expected: list[int]) -> None:
    assert guess(token_ids) == expected


@given(token_ids=st.lists(st.integers(0, 3), max_size=60), cut=st.integers(0, 60))
def test_an_index_that_grows_equals_one_made_at_once(token_ids: list[int], cut: int) -> None:
    grown = NgramIndex()
    grown.extend(token_ids[:cut])
    grown.extend(token_ids)
    assert grown.propose(token_ids, 5) == guess(token_ids, 5)


def test_drafts_grow_when_they_are_right_and_shrink_when_they_are_wrong() -> None:
    drafts = Drafts(100)
    request = Request(make_request([1, 2, 3] * 20, max_tokens=50), seed=0)
    lengths = []
    for num_accepted in (4, 6, 8, 10, 5, 3, 1, 1):
        draft = drafts.propose(request, room=50)
        lengths.append(len(draft))
        drafts.verified(request, len(draft), min(num_accepted, len(draft)))
    assert lengths == [4, 6, 8, 10, 10, 7, 5, 3]


def test_after_wrong_drafts_there_are_pauses() -> None:
    drafts = Drafts(100)
    request = Request(make_request([1, 2, 3] * 20, max_tokens=50), seed=0)
    steps = []
    for step in range(30):
        draft = drafts.propose(request, room=1)
        if draft:
            steps.append(step)
        drafts.verified(request, len(draft), 0)
    assert steps == [0, 2, 5, 10, 19]


def test_drafts_respect_room_and_what_the_request_may_still_say() -> None:
    request = Request(make_request([1, 2] * 10, max_tokens=3), seed=0)
    assert Drafts(0).allowance(0) == 0
    assert (Drafts(9).allowance(2), Drafts(9).allowance(20)) == (7, 0)
    assert Drafts(9).propose(request, room=0) == []
    assert Drafts(9).propose(request, room=1) == [1]
    assert len(Drafts(9).propose(request, room=9)) == 2  # the token after the draft is the third


def repeats(request: ScheduledRequest, digest: int) -> int:
    """A model that mostly goes round in a circle, so that drafts are often right and sometimes wrong."""
    return digest % 5 if digest % 7 == 0 else (request.num_computed_tokens + len(request.token_ids)) % 3


def make_budgets(draft_rows: int) -> Budgets:
    return Budgets(
        max_num_seqs=4,
        max_num_batched_tokens=24,
        max_model_len=64,
        prefill_beside_decodes=8,
        prefill_per_request=2,
        context_price=0,
        long_prompt_tokens=16,
        draft_rows=draft_rows,
    )


def run(requests: list[AddRequest], draft_rows: int, num_blocks: int) -> tuple[dict[str, list[int]], int]:
    """Run to the end with the invariants checked; returns output tokens and the number of steps."""
    runner = FakeRunner(num_blocks=num_blocks, block_size=4, next_token=repeats, eos_token_ids=(4,))
    budgets = make_budgets(draft_rows)
    scheduler = Scheduler(budgets, BlockPool(num_blocks, 4, b"k" * 16))
    for request in requests:
        scheduler.add(Request(request, seed=request.sampling.seed or 0, eos_token_ids=(4,)))
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    num_steps = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        assert plan.num_tokens <= budgets.max_num_batched_tokens
        for output in scheduler.update(runner.step(plan)):
            assert output.error is None, output.error
            outputs[output.request_id] += output.token_ids
        scheduler.check()
        num_steps += 1
        assert num_steps < 2000, "it does not end"
    return outputs, num_steps


REQUESTS = st.lists(
    st.builds(
        lambda prompt, fields: make_request(prompt, **fields),
        st.lists(st.integers(0, 3), min_size=1, max_size=20),
        st.fixed_dictionaries(
            {
                "max_tokens": st.integers(1, 30),
                "min_tokens": st.integers(0, 6),
                "temperature": st.sampled_from([0.0, 1.0]),
                "seed": st.integers(0, 9),
            }
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(requests=REQUESTS, draft_rows=st.integers(1, 20), num_blocks=st.integers(16, 40))
def test_tokens_are_the_same_with_drafts_in_no_more_steps(
    requests: list[AddRequest], draft_rows: int, num_blocks: int
) -> None:
    plain, num_plain_steps = run(requests, 0, num_blocks)
    guessed, num_steps = run(requests, draft_rows, num_blocks)
    assert guessed == plain
    if len(requests) == 1:
        assert num_steps <= num_plain_steps


def test_right_drafts_save_steps_and_are_counted() -> None:
    request = make_request([0, 1, 2] * 6, max_tokens=24, ignore_eos=True)
    runner = FakeRunner(next_token=lambda r, _: (r.num_computed_tokens + len(r.token_ids)) % 3)
    scheduler = Scheduler(make_budgets(8), BlockPool(runner.num_blocks, runner.block_size, None))
    scheduler.add(Request(request, seed=0))
    outputs: list[RequestOutput] = []
    while scheduler.has_work:
        outputs += scheduler.update(runner.step(scheduler.schedule()))
    stats = scheduler.stats()
    assert [token for output in outputs for token in output.token_ids] == [i % 3 for i in range(18, 42)]
    assert stats.num_steps < 12
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 12


def test_numbers_that_go_wrong_in_a_draft_fail_only_when_they_count() -> None:
    request = make_request([0, 1, 2] * 4, max_tokens=6, ignore_eos=True)
    runner = FakeRunner(next_token=lambda r, _: (r.num_computed_tokens + len(r.token_ids)) % 3)
    scheduler = Scheduler(make_budgets(8), BlockPool(runner.num_blocks, runner.block_size, None))
    scheduler.add(Request(request, seed=0))
    scheduler.update(runner.step(scheduler.schedule()))
    runner.failing_request_ids.add(request.request_id)
    (output,) = scheduler.update(runner.step(scheduler.schedule()))
    assert output.error is not None
    assert not scheduler.has_work
