"""Which profile a pod is treated by: its own, whatever its ModelDeployment asks for by now."""

from __future__ import annotations

import pytest
from operator_builders import make_pod, make_wanted

from stoker_operator.api import labels
from stoker_operator.profiles import STOKER, profile_of_pod


def test_each_pod_names_its_profile() -> None:
    pod = make_pod(make_wanted())
    assert pod["metadata"]["labels"][labels.ENGINE_PROFILE] == STOKER.name
    assert profile_of_pod(pod) is STOKER


@pytest.mark.parametrize("found", [None, {}, {labels.ENGINE_PROFILE: "of-a-later-operator"}], ids=str)
def test_a_pod_of_another_operator_is_taken_for_ours(found: dict[str, str] | None) -> None:
    assert profile_of_pod({"metadata": {"name": "x", "labels": found}}) is STOKER


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"null",
        b"[0]",
        b"{}",
        b'{"in_flight": "0"}',
        b'{"in_flight": -1}',
        b'{"in_flight": false}',
    ],
)
def test_what_is_no_number_of_requests_does_not_mean_none(said: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own and ours
        STOKER.load.read(said)
