"""How requests end, and why some can never run. Pure functions over a request."""

from __future__ import annotations

from collections.abc import Sequence

from stoker_runtime.core.request import Request
from stoker_runtime.core.step import SampledToken, ScoredPrompt
from stoker_runtime.messages import FinishReason, RequestOutput


def ended(request: Request, reason: FinishReason, error: str | None = None) -> RequestOutput:
    """Return the output of a request that ends without a new token."""
    return RequestOutput(
        request_id=request.request_id,
        finish_reason=reason,
        num_cached_tokens=request.num_cached_tokens or 0,
        num_preemptions=request.num_preemptions,
        error=error,
    )


def stepped(
    request: Request,
    sampled: Sequence[SampledToken],
    reason: FinishReason | None,
    scored: ScoredPrompt | None = None,
) -> RequestOutput:
    """Return the output of a request whose last tokens are the sampled ones, if there are any.

    Args:
        request: with those tokens.
        sampled: what it got.
        reason: why it ends with them, if it does.
        scored: what it got besides.
    """
    return RequestOutput(
        request_id=request.request_id,
        token_ids=[token.token_id for token in sampled],
        logprobs=[token.logprob for token in sampled if token.logprob is not None],
        prompt_logprobs=[] if scored is None else scored.logprobs,
        finish_reason=reason,
        stop_token_id=sampled[-1].token_id if reason is FinishReason.STOP else None,
        num_cached_tokens=request.num_cached_tokens or 0,
        num_preemptions=request.num_preemptions,
    )


def why_impossible(request: Request, max_model_len: int, capacity: int) -> str | None:
    """Say why a request can never run.

    Args:
        request: one that is new.
        max_model_len: prompt and output tokens that one request may have.
        capacity: tokens that the whole KV cache holds.
    """
    if not request.prompt_token_ids:
        return "the prompt has no tokens"
    if request.num_tokens >= max_model_len:
        limit = max_model_len - 1
        return f"the prompt has {request.num_tokens} tokens; at most {limit} leave room for output"
    return too_long_for_pool(request, capacity) if request.num_tokens > capacity else None


def too_long_for_pool(request: Request, capacity: int) -> str:
    """Say that a request has more tokens than the whole KV cache holds."""
    return (
        f"the request has {request.num_tokens} tokens and the whole KV cache holds {capacity}; "
        "shorten it, or serve the model with more --kv-cache-memory or --memory-fraction"
    )


def finish_reason(request: Request, max_model_len: int) -> FinishReason | None:
    """Return why a request ends with its last token, None when it goes on."""
    output = request.output_token_ids
    if output[-1] in request.end_token_ids:
        return FinishReason.STOP
    if len(output) >= request.sampling.max_tokens or len(request.token_ids) >= max_model_len:
        return FinishReason.LENGTH
    return None
