from itertools import islice

import pytest

from loadgen.arrivals import poisson


def test_same_seed_gives_the_same_times_and_another_seed_does_not() -> None:
    first, again, other = (list(islice(poisson(5.0, seed), 50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_mean_gap_is_the_inverse_of_the_rate_and_its_spread_is_exponential() -> None:
    times = list(islice(poisson(4.0, 0), 20_000))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert min(gaps) > 0
    assert mean == pytest.approx(0.25, rel=0.03)
    assert variance == pytest.approx(0.0625, rel=0.08)


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_refuses_a_rate_that_never_arrives(rate: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        next(poisson(rate, 0))
