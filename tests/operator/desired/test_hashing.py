"""Hashes stand in clusters: whatever library reads and writes JSON elsewhere, they stay what they were."""

import pytest

from stoker_operator.desired.hashing import json_hash


@pytest.mark.parametrize(
    ("value", "digits"),
    [
        ({"b": [1, True, None], "a": "x"}, "5b71bebb"),
        ({"name": "größe \u007f \u2028"}, "5f2363a0"),
        ({"value": 1e16, "small": 1e-7}, "df854731"),
    ],
)
def test_a_value_keeps_its_hash(value: object, digits: str) -> None:
    assert json_hash(value, 8) == digits
