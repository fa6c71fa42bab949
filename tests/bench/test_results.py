import json

import pytest

from loadgen.results import Distribution, Outcome, distribution, summarize, table, token_gaps_s


def make_outcome(index: int = 0, **fields: object) -> Outcome:
    defaults: dict[str, object] = {
        "started_s": 0.0,
        "e2e_s": 1.0,
        "ttft_s": 0.25,
        "itl_s": (0.25, 0.5),
        "prompt_tokens": 10,
        "output_tokens": 4,
    }
    return Outcome(index=index, **{**defaults, **fields})  # type: ignore[arg-type]


def test_percentiles_interpolate_between_the_sorted_values() -> None:
    got = distribution([float(value) for value in range(100, -1, -1)])
    assert got == Distribution(
        count=101, mean=50.0, min=0.0, p50=50.0, p90=90.0, p95=95.0, p99=99.0, max=100.0
    )


def test_one_value_is_every_percentile_and_no_value_has_none() -> None:
    assert distribution([0.5]) == Distribution(1, *[0.5] * 7)
    assert distribution([]) is None


def test_time_per_output_token_leaves_out_the_first() -> None:
    assert make_outcome(e2e_s=1.75, ttft_s=0.25, output_tokens=4).tpot_s == pytest.approx(0.5)
    assert make_outcome(output_tokens=1).tpot_s is None
    assert make_outcome(ttft_s=None).tpot_s is None


def test_gaps_between_tokens_leave_out_answers_with_tokens_that_have_no_text() -> None:
    outcomes = [
        make_outcome(started_s=1.0, ttft_s=0.25, itl_s=(0.5, 0.25), output_tokens=3),
        make_outcome(itl_s=(0.5, 0.25), output_tokens=4),
        make_outcome(ttft_s=None),
    ]
    assert list(token_gaps_s(outcomes)) == [(1.75, 0.5), (2.0, 0.25)]


def test_a_failed_request_counts_under_its_reason_and_nowhere_else() -> None:
    outcomes = [
        make_outcome(0),
        make_outcome(1, e2e_s=3.0),
        make_outcome(2, e2e_s=99.0, failure="http_503", detail="busy"),
        make_outcome(3, failure="cut_stream", detail="after 2 pieces"),
    ]
    summary = summarize(outcomes, duration_s=2.0)
    assert (summary.requests, summary.succeeded) == (4, 2)
    assert summary.failures == {"http_503": 1, "cut_stream": 1}
    assert summary.first_failures == ("#2: http_503: busy", "#3: cut_stream: after 2 pieces")
    assert (summary.prompt_tokens, summary.output_tokens) == (20, 8)
    assert (summary.request_per_s, summary.output_token_per_s, summary.total_token_per_s) == (1.0, 4.0, 14.0)
    assert summary.e2e_s is not None
    assert summary.e2e_s.max == 3.0
    assert summary.itl_s is not None
    assert summary.itl_s.count == 4


def test_a_run_without_an_answer_has_no_times_and_still_prints_and_serializes() -> None:
    summary = summarize([make_outcome(failure="connect", detail="refused")], duration_s=0.0)
    assert summary.ttft_s is None
    assert summary.output_token_per_s == 0.0
    assert json.loads(json.dumps(summary.as_json()))["failures"] == {"connect": 1}
    assert table({"m": summary}).splitlines()[1].split() == ["m", "0", "1", "0.0", "-", "-", "-", "-"]
