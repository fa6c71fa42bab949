"""A scheduler with small budgets for tests, and what a test does with it step by step."""

from collections.abc import Sequence
from typing import Any

from runtime_builders import make_request

from stoker_runtime.core.block_pool import BlockPool
from stoker_runtime.core.budgets import Budgets
from stoker_runtime.core.request import Request
from stoker_runtime.core.scheduler import Scheduler
from stoker_runtime.core.step import SampledToken, ScoredPrompt, StepPlan, StepResult
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
    few: int = 0,
    stretch: int = 0,
    drafts: int = 0,
    scoring_bytes: int = 4000,  # of 1000 prompt tokens
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
        few_requests=few,
        stretch=stretch,
        draft_rows=drafts,
        scoring_bytes=scoring_bytes,
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
    return StepResult(
        [SampledToken(item.request_id, token_id) for item in plan.requests if item.samples],
        scored=[
            ScoredPrompt(item.request_id, [TokenLogprob(token, -1.0, []) for token in item.scored_token_ids])
            for item in plan.scored
        ],
    )


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
