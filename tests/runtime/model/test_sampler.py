"""The sampler: distributions, penalties, masks, log-probabilities, and rows that leave each other alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_builders import cpu_pickers, sample_with
from sampler_builders import make_row as request
from scipy import stats
from torch import Tensor

from stoker_runtime.core.step import SampledToken, ScheduledRequest
from stoker_runtime.model import logprobs
from stoker_runtime.model.masks import ruled_out
from stoker_runtime.model.picker import Picker, TorchPicker, uniform

NUM_DRAWS = 20000
LOGITS = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -4.0]


class Current:
    """The picker that the running test is about."""

    picker: Picker = TorchPicker()


@pytest.fixture(params=["pytorch", "kernels"], autouse=True)
def picker(request: pytest.FixtureRequest) -> None:
    if request.param not in cpu_pickers():
        pytest.skip("no kernels on this machine")
    Current.picker = cpu_pickers()[request.param]


def sample(logits: Tensor, requests: Sequence[ScheduledRequest]) -> list[SampledToken]:
    return sample_with(Current.picker, logits, requests)


def pick(logits: Tensor, *requests: ScheduledRequest) -> list[int]:
    return [token.token_id for token in sample(logits, requests)]


def draws(logits: Tensor, **sampling: Any) -> list[int]:
    """How often each token comes up for one seed over NUM_DRAWS positions."""
    batch = 500
    counts = torch.zeros(logits.shape[0], dtype=torch.long)
    for first in range(0, NUM_DRAWS, batch):
        rows = [request(seed=7, position=first + i + 1, **sampling) for i in range(batch)]
        counts += torch.bincount(
            torch.tensor(pick(logits.repeat(batch, 1), *rows)), minlength=logits.shape[0]
        )
    return [int(count) for count in counts]


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(value / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def only(probabilities: list[float], *kept: int) -> list[float]:
    total = sum(probabilities[i] for i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]


P = softmax(LOGITS)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        pytest.param({"temperature": 1.0}, P, id="plain"),
        pytest.param({"temperature": 0.5}, softmax(LOGITS, 0.5), id="cold"),
        pytest.param({"temperature": 3.0}, softmax(LOGITS, 3.0), id="hot"),
        pytest.param({"temperature": 1.0, "top_k": 3}, only(P, 0, 1, 2), id="top-k"),
        pytest.param({"temperature": 1.0, "top_p": 0.6}, only(P, 0, 1), id="top-p"),
        pytest.param({"temperature": 1.0, "min_p": 0.2}, only(P, 0, 1, 2), id="min-p"),
        # of the first four, two make up 0.79 and the third is needed for 0.8
        pytest.param({"temperature": 1.0, "top_k": 4, "top_p": 0.8}, only(P, 0, 1, 2), id="top-k-then-top-p"),
        pytest.param(
            {"temperature": 2.0, "min_p": 0.4, "top_p": 0.99}, only(softmax(LOGITS, 2.0), 0, 1, 2), id="all"
        ),
        pytest.param({"temperature": 1.0, "logit_bias": {7: 6.0}}, softmax([*LOGITS[:7], 2.0]), id="bias"),
    ],
)
def test_draws_follow_the_distribution(sampling: dict[str, Any], expected: list[float]) -> None:
    observed = draws(torch.tensor(LOGITS), **sampling)
    possible = [i for i, p in enumerate(expected) if p > 0]
    assert sum(observed[i] for i in possible) == NUM_DRAWS
    result = stats.chisquare([observed[i] for i in possible], [expected[i] * NUM_DRAWS for i in possible])
    assert result.pvalue > 0.01


def test_draws_from_a_vocabulary_wider_than_the_sorted_part_follow_the_distribution() -> None:
    logits = torch.linspace(0.0, 0.5, 1500)[torch.randperm(1500, generator=torch.Generator().manual_seed(1))]
    observed = torch.tensor(draws(logits, temperature=1.0, top_p=0.9), dtype=torch.float64)
    order = logits.argsort(descending=True)
    probabilities = logits.double().softmax(dim=-1)[order]
    kept = (probabilities.cumsum(0) - probabilities) < 0.9  # far more than the narrow sort holds
    assert int(kept.sum()) > 1200
    assert observed[order][~kept].sum() == 0
    bins = torch.arange(int(kept.sum())) // 50
    expected = torch.zeros(int(bins.max()) + 1, dtype=torch.float64)
    expected.index_add_(0, bins, probabilities[kept] / probabilities[kept].sum())
    seen = torch.zeros_like(expected).index_add_(0, bins, observed[order][kept])
    assert stats.chisquare(seen.tolist(), (expected * NUM_DRAWS).tolist()).pvalue > 0.01


def test_uniform_numbers_are_uniform_over_positions_and_over_seeds() -> None:
    over_positions = [uniform(5, position) for position in range(NUM_DRAWS)]
    over_seeds = [uniform(seed, 5) for seed in range(NUM_DRAWS)]
    for values in (over_positions, over_seeds):
        assert stats.kstest(values, "uniform").pvalue > 0.01
        assert min(values) > 0.0
        assert max(values) < 1.0
    assert abs(stats.pearsonr(over_positions[:-1], over_positions[1:]).statistic) < 0.02
    assert uniform(2**63 - 1, 2**31) == uniform(2**63 - 1, 2**31)
    assert uniform(-1, 0) != uniform(1, 0)


@st.composite
def odd_requests(draw: st.DrawFn) -> ScheduledRequest:
    """Any request over 50 tokens."""
    tokens = st.integers(0, 49)
    return request(
        draw(st.text("abc", max_size=3)),
        seed=draw(st.integers(0, 2**63 - 1)),
        position=draw(st.integers(1, 10000)),
        prompt=draw(st.lists(tokens, min_size=1, max_size=5)),
        output=draw(st.lists(tokens, max_size=10)),
        masked=tuple(draw(st.lists(tokens, max_size=3))),
        temperature=draw(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 10, 50, 1000])),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.5, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.1, 1.0])),
        presence_penalty=draw(st.sampled_from([0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        logit_bias=draw(st.dictionaries(tokens, st.floats(-100, 100), max_size=3)),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        allowed_token_ids=draw(st.none() | st.none() | st.sets(tokens, min_size=5).map(tuple)),
        bad_words_token_ids=tuple(draw(st.lists(st.lists(tokens, max_size=2).map(tuple), max_size=3))),
    )


@given(requests=st.lists(odd_requests(), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_row_is_sampled_as_if_it_were_alone(requests: list[ScheduledRequest], seed: int) -> None:
    logits = torch.randn(len(requests), 50, generator=torch.Generator().manual_seed(seed)) * 3
    together = sample(logits.clone(), requests)
    alone = [sample(logits[row : row + 1].clone(), [r])[0] for row, r in enumerate(requests)]
    assert [(t.request_id, t.token_id, t.error) for t in together] == [
        (t.request_id, t.token_id, t.error) for t in alone
    ]
    for token, r in zip(together, requests, strict=True):
        assert token.token_id not in ruled_out(r)
        assert r.allowed_token_ids is None or token.token_id in {-1, *r.allowed_token_ids}


@given(
    requests=st.lists(odd_requests(), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
    num_levels=st.integers(1, 4),
)
def test_equal_logits_are_told_apart_by_token_whatever_the_batch(
    requests: list[ScheduledRequest], seed: int, num_levels: int
) -> None:
    # wider than what is sorted at first, so that another row's top_k makes a difference
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(num_levels, (len(requests), 700), generator=generator).float()
    wide = request("wide", temperature=1.0, top_k=600, logprobs=20)
    alone = [sample(logits[row : row + 1].clone(), [r])[0] for row, r in enumerate(requests)]
    together = sample(torch.cat([logits, logits[:1]]), [*requests, wide])[:-1]
    for one, other in zip(together, alone, strict=True):
        assert (one.token_id, one.error) == (other.token_id, other.error)
        assert (one.logprob and one.logprob.top) == (other.logprob and other.logprob.top)


def test_of_equal_logits_the_first_tokens_are_kept() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0, 1.0])
    for limits in ({"top_k": 3}, {"top_p": 0.6}):
        counts = draws(logits, temperature=1.0, **limits)
        assert [token for token, count in enumerate(counts) if count] == [1, 2, 3]
    (token,) = sample(logits.unsqueeze(0).clone(), [request(logprobs=3)])
    assert token.logprob is not None
    assert [token_id for token_id, _ in token.logprob.top] == [3, 1, 2]


def test_greedy_takes_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert pick(logits, request(), request()) == [1, 0]


def test_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert pick(torch.tensor([[0.0, 3.0, 2.9999]]), request(temperature=1e-9)) == [1]


def test_smallest_top_p_keeps_the_most_likely_token() -> None:
    rows = [request(position=i, temperature=1.0, top_p=1e-9) for i in range(1, 50)]
    assert set(pick(torch.tensor([LOGITS]).repeat(49, 1), *rows)) == {0}


@pytest.mark.parametrize("sampling", [{}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_a_top_p_that_float32_rounds_to_zero_keeps_the_most_likely_token(sampling: dict[str, Any]) -> None:
    logits = torch.tensor([LOGITS])
    assert pick(logits, request(temperature=2.0, top_p=1e-300, **sampling)) == [0]


def test_masked_tokens_are_never_picked() -> None:
    logits = torch.tensor([[9.0, 3.0, 1.0]])
    assert pick(logits.clone(), request(masked=(0,))) == [1]
    assert pick(logits.clone(), request(masked=(0, 1), logit_bias={0: 100.0})) == [2]
    rows = [request(position=i, masked=(0,), temperature=2.0) for i in range(1, 100)]
    assert set(pick(logits.repeat(99, 1), *rows)) == {1, 2}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        pytest.param({"presence_penalty": 0.5}, [3.5, 1.5, -1.0, -2.5], id="presence"),
        pytest.param({"frequency_penalty": 0.5}, [3.0, 1.5, -1.0, -2.5], id="frequency"),
        pytest.param({"frequency_penalty": -1.0, "presence_penalty": 2.0}, [4.0, 1.0, -1.0, -3.0], id="both"),
        # of prompt and output tokens; a negative logit is multiplied
        pytest.param({"repetition_penalty": 2.0}, [2.0, 1.0, -2.0, -4.0], id="repetition"),
        pytest.param(
            {"repetition_penalty": 2.0, "presence_penalty": 0.5}, [1.5, 0.5, -2.0, -4.5], id="order"
        ),
    ],
)
def test_penalties_change_logits_as_written(sampling: dict[str, Any], expected: list[float]) -> None:
    logits = torch.tensor([[4.0, 2.0, -1.0, -2.0], [1.0, 2.0, 3.0, 4.0]])
    penalized = request(prompt=[2, 2], output=[0, 0, 1, 3], **sampling)
    sample(logits, [penalized, request()])
    torch.testing.assert_close(logits[0], torch.tensor(expected))
    torch.testing.assert_close(logits[1], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.tensor([LOGITS])
    chosen = request(logprobs=3, temperature=0.0, logit_bias={4: 50.0}, presence_penalty=1.0, output=[0])
    (token,) = sample(logits, [chosen])
    assert token.token_id == 4
    assert token.logprob is not None
    assert token.logprob.token_id == 4
    assert token.logprob.logprob == pytest.approx(math.log(P[4]), abs=1e-5)
    assert [token_id for token_id, _ in token.logprob.top] == [0, 1, 2]
    assert [value for _, value in token.logprob.top] == pytest.approx([math.log(p) for p in P[:3]], abs=1e-5)


def test_ranks_count_the_tokens_with_a_higher_raw_logit() -> None:
    rows = [request(logprobs=0, logit_bias={token: 90.0}) for token in range(4)]
    logits = torch.tensor([0.5, 2.0, 0.5, -1.0])
    tokens = sample(logits.repeat(4, 1), rows)
    assert [token.logprob and token.logprob.rank for token in tokens] == [2, 1, 2, 4]


def test_log_probabilities_of_many_rows_are_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 30, generator=torch.Generator().manual_seed(3))
    kinds: list[dict[str, Any]] = [
        {"logprobs": 30},
        {"logprobs": 2, "repetition_penalty": 1.7},
        {"logprobs": 1, "presence_penalty": 2.0, "output": [4, 4]},
    ]
    rows = [request(str(i), prompt=[3, 7], **kinds[i % 3]) for i in range(9)]
    expected = sample(logits.clone(), rows)
    sizes: list[int] = []
    likeliest = logprobs._likeliest

    def spy(part: Tensor, count: int) -> Tensor:
        sizes.append(part.shape[0])
        return likeliest(part, count)

    monkeypatch.setattr(logprobs, "_PIECE", 60)
    monkeypatch.setattr(logprobs, "_likeliest", spy)
    assert sample(logits.clone(), rows) == expected
    assert sizes == [2, 1] * 3


def test_each_row_gets_as_many_logprobs_as_it_asked_for() -> None:
    asked = [None, 0, 2, 100]
    tokens = sample(torch.tensor([LOGITS]).repeat(4, 1), [request(logprobs=n) for n in asked])
    assert [None if t.logprob is None else len(t.logprob.top) for t in tokens] == [None, 0, 2, len(LOGITS)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits = torch.tensor([LOGITS, LOGITS, LOGITS])
    logits[1, 3] = bad
    rows = [request(name, temperature=temperature, top_p=0.9, logprobs=1) for name in "abc"]
    tokens = sample(logits, rows)
    healthy = sample(torch.tensor([LOGITS]), [request("a", temperature=temperature, top_p=0.9, logprobs=1)])
    assert tokens[0] == healthy[0]
    assert tokens[2].token_id == healthy[0].token_id
    assert (tokens[1].token_id, tokens[1].logprob) == (-1, None)
    assert "not finite" in str(tokens[1].error)


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 8), []) == []


def test_rows_and_requests_must_agree() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 requests"):
        sample(torch.zeros(2, 8), [request()])


def test_both_pickers_draw_the_same_tokens() -> None:
    generator = torch.Generator().manual_seed(5)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 40},
        {"temperature": 1.0, "top_k": 7, "top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.05},
        {"temperature": 2.0, "top_p": 0.999, "min_p": 0.001},
    ]
    rows = [request(seed=3, position=i + 1, **kinds[i % len(kinds)]) for i in range(70 * len(kinds))]
    for spread in (1.0, 4.0):
        logits = torch.randn(len(rows), 3000, generator=generator) * spread
        picked = [picker.pick(logits.clone(), rows).tolist() for picker in cpu_pickers().values()]
        # a place within a rounding error of a border between two tokens may fall on either side
        assert sum(a != b for a, b in zip(picked[0], picked[-1], strict=True)) <= 1
