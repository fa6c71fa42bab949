"""The bound of writes must see what it is there for."""

import pytest
from fakeapi.client import put
from fakeapi.core import FakeApi
from virtual_time import pass_time, run_virtual
from write_bounds import MAX_BY_RESTART, MAX_FRUITLESS, assert_writes_are_bounded

from stoker_operator.cluster.client import MERGE_PATCH

POD = "/api/v1/namespaces/default/pods/m-1-0"


def written(num: int) -> FakeApi:
    """After so many writes, one each second, that change nothing."""
    api = FakeApi()
    put(api, "pods", {"metadata": {"name": "m-1-0", "namespace": "default"}, "spec": {"containers": [{}]}})

    async def write() -> None:
        for _ in range(num):
            await api.request("PATCH", POD, {}, b"{}", MERGE_PATCH)
            await pass_time(1.0)

    run_virtual(write())
    return api


@pytest.mark.parametrize(
    ("restarts_s", "most"),
    [
        ((), MAX_FRUITLESS),
        ((3.5,), MAX_FRUITLESS),
        ((3.5, 6.5), MAX_FRUITLESS + MAX_BY_RESTART),
        ((3.5, 6.5, 500.0), MAX_FRUITLESS + MAX_BY_RESTART),
    ],
    ids=str,
)
def test_the_processes_of_one_minute_share_their_writes(restarts_s: tuple[float, ...], most: int) -> None:
    assert_writes_are_bounded(written(most), restarts_s)
    with pytest.raises(AssertionError, match=f"{most + 1} within a minute"):
        assert_writes_are_bounded(written(most + 1), restarts_s)
