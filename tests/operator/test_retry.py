"""How often may be tried."""

from hypothesis import given
from hypothesis import strategies as st

from stoker_operator.retry import TokenBucket

SIZE, REFILL_S, WINDOW_S = 3, 10.0, 60.0


@given(st.lists(st.floats(0.0, 20.0), max_size=100))
def test_whoever_waits_for_tokens_gets_a_few_at_once_and_a_few_a_minute(gaps_s: list[float]) -> None:
    bucket, now_s, taken_s = TokenBucket(SIZE, REFILL_S, at_s=0.0), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        if bucket.tokens(now_s) >= 1:
            bucket = bucket.taken(now_s)
            taken_s.append(now_s)
    for last_s in taken_s:
        num = sum(last_s - WINDOW_S < at_s <= last_s for at_s in taken_s)
        assert num <= SIZE + WINDOW_S / REFILL_S


def test_a_bucket_begins_empty_fills_up_and_may_be_in_debt() -> None:
    bucket = TokenBucket(SIZE, REFILL_S, at_s=0.0)
    assert [bucket.tokens(now_s) for now_s in (0.0, 5.0, 10.0, 1000.0)] == [0.0, 0.5, 1.0, 3.0]
    assert bucket.taken(5.0).tokens(5.0) == -0.5


def test_a_clock_that_is_set_back_neither_brings_nor_takes_tokens() -> None:
    bucket = TokenBucket(SIZE, REFILL_S, at_s=100.0, left=2.0)
    assert bucket.tokens(10.0) == 2.0
    assert bucket.taken(10.0).tokens(20.0) == 2.0
