"""Draws tokens from finished logits: temperature, min_p, top_k, top_p, and a place in what remains.

Randomness has no state: request seed and position give one uniform number, so a request's text does not
depend on what else is in the batch, nor on preemption.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stoker_runtime.core.step import ScheduledRequest
from stoker_runtime.messages import SamplingParams

MOST_TOP_K = 2**31 - 1  # what kernels can hold; more than a vocabulary has keeps all of it
_GREEDY_BELOW = 1e-5  # dividing by less only loses precision
_HOTTEST = 1e30  # beyond it float32 has no number; all tokens have long been equally likely
_NARROW = 128  # candidates sorted before more are
_SPAN = 64  # tokens summed together when a place in the distribution is looked up


class Picker(Protocol):
    """Who looks at rows of logits. Rows do not depend on each other."""

    def are_finite(self, logits: Tensor) -> Tensor:
        """Tell of each row whether all its logits are finite numbers: [B, V] float32 -> [B] bool."""
        ...

    def pick(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
        """Pick the most likely token of each greedy row and draw one for the others.

        Args:
            logits: biased and penalized, minus infinity where a token is ruled out; may be overwritten.
            requests: one per row.

        Returns:
            Token ids; -1 for a row whose largest logit is not a finite number.

        Shapes:
            logits [B, V] float32 -> [B], integers on the same device
        """
        ...


class TorchPicker:
    """A Picker in PyTorch's operators, for any device."""

    def are_finite(self, logits: Tensor) -> Tensor:
        """See Picker."""
        return logits.sum(dim=-1).isfinite()

    def pick(self, logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
        """See Picker."""
        is_finite = logits.amax(dim=-1).isfinite()
        is_sound: list[bool] = is_finite.tolist()
        drawn = [row for row in rows_where(requests, is_drawn) if is_sound[row]]
        if len(drawn) == len(requests):
            return _draw(logits, requests)
        picked = logits.argmax(dim=-1)
        if drawn:
            rows = on_device(drawn, torch.long, logits.device)
            picked[rows] = _draw(logits[rows], [requests[row] for row in drawn])
        return torch.where(is_finite, picked, -1)


def uniform(seed: int, position: int) -> float:
    """Return a number strictly between 0 and 1 that depends on nothing but the two integers.

    32 bits of a hash, so that its product with a float64 sum never rounds up to the sum.
    """
    data = struct.pack("<QQ", seed & (2**64 - 1), position)
    (word,) = struct.unpack("<I", hashlib.blake2b(data, digest_size=4).digest())
    return (float(word) + 0.5) / 2**32


def place(request: ScheduledRequest) -> float:
    """Return the request's random number for the token that this step picks."""
    return uniform(request.seed, request.num_computed_tokens + len(request.token_ids))


def rows_where(requests: Sequence[ScheduledRequest], wanted: Callable[[SamplingParams], bool]) -> list[int]:
    """Return the rows whose requests want something."""
    return [row for row, request in enumerate(requests) if wanted(request.sampling)]


def on_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers, or equally long tuples of them, as a tensor, without waiting for the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one float32 per row, [R, 1]."""
    return on_device(values, torch.float32, like.device).unsqueeze(1)


def is_drawn(sampling: SamplingParams) -> bool:
    """Tell whether a token is drawn rather than the most likely one taken."""
    return sampling.temperature >= _GREEDY_BELOW


def temperature_of(sampling: SamplingParams) -> float:
    """Return what a drawn token's logits are divided by."""
    return min(sampling.temperature, _HOTTEST)


def _draw(logits: Tensor, requests: Sequence[ScheduledRequest]) -> Tensor:
    """Draw one token per row: logits [R, V], overwritten, -> [R]."""
    temperature = column([temperature_of(r.sampling) for r in requests], logits)
    scaled = logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(temperature)  # largest is 0
    rows = rows_where(requests, lambda s: s.min_p > 0.0)
    if rows:
        floor = column([math.log(requests[row].sampling.min_p) for row in rows], logits)
        part = scaled[rows]
        scaled[rows] = part.masked_fill_(part < floor, -math.inf)
    rows = rows_where(requests, lambda s: s.top_k > 0 or s.top_p < 1.0)
    if rows:
        scaled[rows] = _keep_top(scaled[rows], [requests[row].sampling for row in rows])
    places = [place(request) for request in requests]
    return _pick(scaled.exp_(), on_device(places, torch.float64, logits.device))


def _pick(weights: Tensor, places: Tensor) -> Tensor:
    """Return the token at a place, 0 to 1, of each row's cumulative distribution, in vocabulary order.

    Rounding elsewhere in the batch moves the borders between tokens by as little as it moves the weights.
    Sums in float64 first find the span of tokens, then the token in it: a tenth of the work of summing all.

    Shapes:
        weights [R, V] float32, places [R] float64 -> [R]
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
    return (index * _SPAN + torch.searchsorted(inside, rest, right=True)).squeeze(1)


def _keep_top(scaled: Tensor, params: Sequence[SamplingParams], width: int = _NARROW) -> Tensor:
    """Rule out all but the top_k most likely tokens, then all but the smallest set with mass top_p of those.

    Of equally likely tokens the first ones stay, so that nothing depends on who else is in the batch.
    Sorting a vocabulary is slow and nearly always needless: `width` candidates are sorted, and only the rows
    whose set reaches beyond them are done again with more.

    Shapes:
        scaled [R, V] -> [R, V]
    """
    vocab_size = scaled.shape[1]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    # One more than stays, to see whether it equals the last that does.
    width = min(vocab_size, max(width, *(k + 1 for k in top_k if k < vocab_size), 1))
    ranked, token_ids = scaled.topk(width, dim=-1)  # most likely first
    limit = torch.tensor(top_k, device=scaled.device).unsqueeze(1)
    values = ranked.masked_fill(torch.arange(width, device=scaled.device) >= limit, -math.inf)
    mass = values.exp().double()
    cumulative = mass.cumsum(dim=-1)
    total = torch.where(
        limit < vocab_size, cumulative[:, -1:], scaled.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    )
    wanted = total * column([p.top_p for p in params], scaled).double()
    # The most likely token always stays: a top_p may be too small for a float.
    values[:, 1:].masked_fill_((cumulative - mass >= wanted)[:, 1:], -math.inf)
    num_kept = (values > -math.inf).sum(dim=-1, keepdim=True)
    result = torch.full_like(scaled, -math.inf).scatter_(1, token_ids, values)
    if width < vocab_size:
        short = (num_kept == width).squeeze(1).nonzero().squeeze(1).tolist()
        if short:
            result[short] = _keep_top(scaled[short], [params[row] for row in short], width * 8)
    last = ranked.gather(1, num_kept - 1)
    following = ranked.gather(1, num_kept.clamp(max=width - 1))
    tied = ((num_kept < width) & (following == last)).squeeze(1).nonzero().squeeze(1)
    if len(tied):
        num_equal = num_kept[tied] - (ranked[tied] > last[tied]).sum(dim=-1, keepdim=True)
        result[tied] = _keep_from(scaled[tied], last[tied], num_equal)
    return result


def _keep_from(scaled: Tensor, value: Tensor, count: Tensor) -> Tensor:
    """Rule out all tokens below a value, and of those that have it all but the first.

    Shapes:
        scaled [R, V], value [R, 1], count [R, 1] -> [R, V]
    """
    is_equal = scaled == value
    is_late = is_equal & (is_equal.cumsum(dim=-1) > count)
    return scaled.masked_fill((scaled < value) | is_late, -math.inf)
