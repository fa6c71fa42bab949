import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_operator.lanes import MAX_IN_A_ROW, Lanes, Priority

KEYS = st.integers(0, 30)
# An add with its priority, or (None) a take.
STEPS = st.lists(st.tuples(KEYS, st.sampled_from([Priority.LOW, Priority.HIGH, None])), max_size=300)


def test_nobody_waits() -> None:
    with pytest.raises(KeyError):
        Lanes[str]().take()


@given(STEPS)
def test_high_goes_before_low_in_the_order_of_coming_but_for_the_turns_of_low(
    steps: list[tuple[int, Priority | None]],
) -> None:
    lanes: Lanes[int] = Lanes()
    high: list[int] = []
    low: list[int] = []
    num_in_a_row = 0
    for key, priority in steps:
        if priority is not None:
            assert lanes.add(key, priority) == (key not in high + low)
            if priority is Priority.HIGH and key in low:
                low.remove(key)
            if key not in high + low:
                (high if priority is Priority.HIGH else low).append(key)
        elif high or low:
            taken = lanes.take()
            if taken in high:
                assert taken == high.pop(0)
                num_in_a_row = num_in_a_row + 1 if low else 0
                assert num_in_a_row <= MAX_IN_A_ROW
            else:
                assert taken == low.pop(0)
                assert not high or num_in_a_row == MAX_IN_A_ROW
                num_in_a_row = 0
        assert len(lanes) == len(high) + len(low)
    assert sorted(lanes.take() for _ in range(len(lanes))) == sorted(high + low)


@given(num_low=st.integers(1, 40), position=st.integers(0, 39))
def test_no_stream_of_events_holds_up_the_low_lane_for_ever(num_low: int, position: int) -> None:
    lanes: Lanes[tuple[str, int]] = Lanes()
    for number in range(num_low):
        lanes.add(("low", number), Priority.LOW)
    taken: list[tuple[str, int]] = []
    wanted = ("low", min(position, num_low - 1))
    for number in range((wanted[1] + 1) * (MAX_IN_A_ROW + 1)):
        lanes.add(("high", 2 * number), Priority.HIGH)
        lanes.add(("high", 2 * number + 1), Priority.HIGH)
        taken.append(lanes.take())
    assert wanted in taken
