"""Picks the next token of each request from the step's logits.

What a request does not ask for costs nothing: an all-greedy step is one pass to find bad logits and one
argmax. Randomness has no state: request seed and position give one uniform number, so a request's text does
not depend on what else is in the batch, nor on preemption.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.messages import SamplingParams, TokenLogprob

_GREEDY_BELOW = 1e-5  # dividing by less only loses precision
_NARROW = 128  # candidates sorted before more are
_SPAN = 64  # tokens summed together when a place in the distribution is looked up
_NOT_FINITE = "the model's logits are not finite numbers"


def sample(logits: Tensor, requests: Sequence[ScheduledRequest]) -> list[SampledToken]:
    """Pick the next token of each request.

    The order of what a request may ask for: logit_bias, masked tokens, repetition penalty, presence and
    frequency penalties, temperature, min_p, top_k, top_p. Log-probabilities are of the raw logits.

    Args:
        logits: unnormalised scores; float32, changed in place.
        requests: one per row.
    Shapes:
        logits [B, V]

    Returns:
        One SampledToken per row; a row with a NaN or infinite logit gets an error instead of a token.

    Raises:
        ValueError: logits and requests disagree on B.
    """
    if logits.shape[0] != len(requests):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(requests)} requests")
    if not requests:
        return []
    is_computed_well = logits.sum(dim=-1).isfinite()
    raw = _raw_logprobs(logits, requests)
    _bias(logits, requests)
    _penalize(logits, requests)
    # Masked tokens are -inf by now; a penalty can overflow, and then no draw from the row means anything.
    is_finite = (is_computed_well & logits.amax(dim=-1).isfinite()).tolist()
    drawn = [row for row in _rows(requests, _is_drawn) if is_finite[row]]
    picked = [-1] * len(requests) if len(drawn) == len(requests) else logits.argmax(dim=-1).tolist()
    if drawn:
        chosen = logits[drawn] if len(drawn) < len(requests) else logits
        for row, token_id in zip(drawn, _draw(chosen, [requests[row] for row in drawn]), strict=True):
            picked[row] = token_id
    logprobs = _logprobs(raw, requests, picked)
    return [
        SampledToken(request.request_id, picked[row], logprobs.get(row))
        if is_finite[row]
        else SampledToken(request.request_id, -1, error=_NOT_FINITE)
        for row, request in enumerate(requests)
    ]


def uniform(seed: int, position: int) -> float:
    """Return a number strictly between 0 and 1 that depends on nothing but the two integers.

    32 bits of a hash, so that its product with a float64 sum never rounds up to the sum.
    """
    data = struct.pack("<QQ", seed & (2**64 - 1), position)
    (word,) = struct.unpack("<I", hashlib.blake2b(data, digest_size=4).digest())
    return (float(word) + 0.5) / 2**32


def _rows(requests: Sequence[ScheduledRequest], wanted: Callable[[SamplingParams], bool]) -> list[int]:
    return [row for row, request in enumerate(requests) if wanted(request.sampling)]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One float32 per row, [R, 1]."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)


def _bias(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Add logit_bias and rule out masked tokens, in place."""
    entries = [
        (row, token_id, bias)
        for row, request in enumerate(requests)
        for token_id, bias in (
            *request.sampling.logit_bias.items(),
            *((token_id, -math.inf) for token_id in request.masked_token_ids),
        )
    ]
    if entries:
        rows, token_ids, biases = zip(*entries, strict=True)
        where = (torch.tensor(rows, device=logits.device), torch.tensor(token_ids, device=logits.device))
        values = torch.tensor(biases, dtype=logits.dtype, device=logits.device)
        logits.index_put_(where, values, accumulate=True)


def _counts(token_lists: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """How often each row's list holds each token, [R, V] float32."""
    counts = torch.zeros(len(token_lists), like.shape[1], device=like.device)
    for row, token_ids in enumerate(token_lists):
        where = torch.tensor(token_ids, dtype=torch.long, device=like.device)
        counts[row].index_add_(0, where, torch.ones(len(token_ids), device=like.device))
    return counts


def _penalize(logits: Tensor, requests: Sequence[ScheduledRequest]) -> None:
    """Apply the three penalties to the rows that ask for them, in place."""
    rows = _rows(requests, lambda s: s.repetition_penalty != 1.0)
    if rows:
        chosen = [requests[row] for row in rows]
        seen = _counts([[*r.prompt_token_ids, *r.output_token_ids] for r in chosen], logits) > 0
        penalty = _column([r.sampling.repetition_penalty for r in chosen], logits)
        part = logits[rows]
        logits[rows] = torch.where(seen, torch.where(part > 0, part / penalty, part * penalty), part)
    rows = _rows(requests, lambda s: s.presence_penalty != 0.0 or s.frequency_penalty != 0.0)
    if rows:
        chosen = [requests[row] for row in rows]
        counts = _counts([r.output_token_ids for r in chosen], logits)
        frequency = _column([r.sampling.frequency_penalty for r in chosen], logits)
        presence = _column([r.sampling.presence_penalty for r in chosen], logits)
        logits[rows] -= frequency * counts + presence * (counts > 0)


def _is_drawn(sampling: SamplingParams) -> bool:
    return sampling.temperature >= _GREEDY_BELOW


def _draw(logits: Tensor, requests: Sequence[ScheduledRequest]) -> list[int]:
    """Draw one token per row: logits [R, V], overwritten."""
    temperature = _column([r.sampling.temperature for r in requests], logits)
    scaled = logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(temperature)  # largest is 0
    rows = _rows(requests, lambda s: s.min_p > 0.0)
    if rows:
        floor = _column([math.log(requests[row].sampling.min_p) for row in rows], logits)
        part = scaled[rows]
        scaled[rows] = part.masked_fill_(part < floor, -math.inf)
    rows = _rows(requests, lambda s: s.top_k > 0 or s.top_p < 1.0)
    if rows:
        scaled[rows] = _keep_top(scaled[rows], [requests[row].sampling for row in rows])
    places = [uniform(r.seed, r.num_computed_tokens + len(r.token_ids)) for r in requests]
    return _pick(scaled.exp_(), torch.tensor(places, dtype=torch.float64, device=logits.device))


def _pick(weights: Tensor, places: Tensor) -> list[int]:
    """Return the token at a place, 0 to 1, of each row's cumulative distribution, in vocabulary order.

    Rounding elsewhere in the batch moves the borders between tokens by as little as it moves the weights.
    Sums in float64 first find the span of tokens, then the token in it: a tenth of the work of summing all.

    Shapes:
        weights [R, V] float32, places [R] float64
    """
    spans = F.pad(weights, (0, -weights.shape[1] % _SPAN)).view(weights.shape[0], -1, _SPAN)
    ends = spans.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)  # [R, V / span]
    target = places.unsqueeze(1) * ends[:, -1:]
    index = torch.searchsorted(ends, target, right=True)  # [R, 1]
    before = torch.where(index > 0, ends.gather(1, (index - 1).clamp_(min=0)), 0.0)
    inside = (
        spans.gather(1, index.unsqueeze(2).expand(-1, 1, _SPAN)).squeeze(1).cumsum(-1, dtype=torch.float64)
    )
    # Two sums of the same span may differ in their last bit; a place past the end would be no token at all.
    rest = torch.minimum(target - before, inside[:, -1:] * (1 - 1e-12))
    token_ids: list[int] = (index * _SPAN + torch.searchsorted(inside, rest, right=True)).squeeze(1).tolist()
    return token_ids


def _keep_top(scaled: Tensor, params: Sequence[SamplingParams], width: int = _NARROW) -> Tensor:
    """Rule out all but the top_k most likely tokens, then all but the smallest set with mass top_p of those.

    Sorting a vocabulary is slow and nearly always needless: `width` candidates are sorted, and only the rows
    whose set reaches beyond them are done again with more.

    Shapes:
        scaled [R, V] -> [R, V]
    """
    vocab_size = scaled.shape[1]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    width = min(vocab_size, max(width, *(k for k in top_k if k < vocab_size), 1))
    values, token_ids = scaled.topk(width, dim=-1)  # most likely first
    limit = torch.tensor(top_k, device=scaled.device).unsqueeze(1)
    values.masked_fill_(torch.arange(width, device=scaled.device) >= limit, -math.inf)
    mass = values.exp().double()
    cumulative = mass.cumsum(dim=-1)
    total = torch.where(
        limit < vocab_size, cumulative[:, -1:], scaled.exp().sum(dim=-1, keepdim=True).double()
    )
    wanted = total * _column([p.top_p for p in params], scaled).double()
    # The most likely token always stays: a top_p may be too small for a float.
    values[:, 1:].masked_fill_((cumulative - mass >= wanted)[:, 1:], -math.inf)
    result = torch.full_like(scaled, -math.inf).scatter_(1, token_ids, values)
    if width < vocab_size:
        short = (cumulative[:, -1:] < wanted).squeeze(1).nonzero().squeeze(1).tolist()
        if short:
            result[short] = _keep_top(scaled[short], [params[row] for row in short], width * 8)
    return result


def _raw_logprobs(logits: Tensor, requests: Sequence[ScheduledRequest]) -> tuple[list[int], Tensor] | None:
    """Log-softmax of the rows whose requests want log-probabilities, before anything changes them."""
    rows = _rows(requests, lambda s: s.logprobs is not None)
    return (rows, logits[rows].log_softmax(dim=-1)) if rows else None


def _logprobs(
    raw: tuple[list[int], Tensor] | None, requests: Sequence[ScheduledRequest], picked: Sequence[int]
) -> dict[int, TokenLogprob]:
    if raw is None:
        return {}
    rows, logprobs = raw
    num_top = min(max(requests[row].sampling.logprobs or 0 for row in rows), logprobs.shape[1])
    values, token_ids = (part.tolist() for part in logprobs.topk(num_top, dim=-1))
    chosen = logprobs.gather(1, torch.tensor([[picked[row]] for row in rows], device=logprobs.device))
    found = {}
    for index, row in enumerate(rows):
        count = requests[row].sampling.logprobs or 0
        top = list(zip(token_ids[index][:count], values[index][:count], strict=True))
        found[row] = TokenLogprob(token_id=picked[row], logprob=chosen[index].item(), top=top)
    return found
