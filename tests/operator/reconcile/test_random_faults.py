"""Stories of random trouble, each made of a seed; all must end well, and no promise be broken on the way.

``STOKER_SEED=123 pytest tests/operator/reconcile/test_random_faults.py`` plays one story again; a story that
fails is printed as the list of its steps.
"""

import logging
import os
from collections.abc import Iterator

import pytest
from storm import play
from storm_story import tell

NUM_BLOCKS = 20
NUM_SEEDS, NUM_LONG_SEEDS = 1_000, 10_000
BLOCKS = [*range(0, NUM_SEEDS, NUM_SEEDS // NUM_BLOCKS)]
LONG_BLOCKS = [*range(NUM_SEEDS, NUM_SEEDS + NUM_LONG_SEEDS, 100)]


@pytest.fixture(autouse=True)
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("stoker_operator")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def play_all(seeds: range) -> None:
    """Play the stories of these seeds, or only the one that is asked for."""
    asked = os.environ.get("STOKER_SEED")
    for seed in seeds:
        if asked is None or seed == int(asked):
            play(tell(seed))


@pytest.mark.parametrize("first", BLOCKS)
def test_random_trouble_ends_well(first: int) -> None:
    play_all(range(first, first + NUM_SEEDS // NUM_BLOCKS))


@pytest.mark.long
@pytest.mark.parametrize("first", LONG_BLOCKS)
def test_more_random_trouble_ends_well(first: int) -> None:
    play_all(range(first, first + 100))


def test_a_seed_makes_one_story() -> None:
    assert tell(7) == tell(7)
    assert str(tell(7)).startswith("STOKER_SEED=7: ")
    assert tell(7) != tell(8)
