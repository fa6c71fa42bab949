"""The annotation that asks for new pods: newer times count, and nothing that tools do to annotations."""

from __future__ import annotations

from typing import Any

import pytest
from operator_builders import CONFIG, NOW, make_model, make_observed, make_wanted, wanted_of

from stoker_operator.api import InvalidSpec, labels, parse, salvage
from stoker_operator.desired import held
from stoker_operator.status import status

PLAIN = make_wanted().revision
EARLY, LATE = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"


def model(asked: str | None = None, kept: str | None = None) -> dict[str, Any]:
    found = make_model(status=None if kept is None else {"restartedAt": kept})
    if asked is not None:
        found["metadata"]["annotations"] = {labels.RESTARTED_AT: asked, "other": "x"}
    return found


def revision(asked: str | None = None, kept: str | None = None) -> str:
    return wanted_of(model(asked, kept)).revision


def test_a_time_makes_a_revision_and_none_makes_none() -> None:
    assert revision() == revision("") == PLAIN
    assert len({PLAIN, revision(EARLY), revision(LATE)}) == 3


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        pytest.param(LATE, EARLY, id="asked-again"),
        pytest.param(None, LATE, id="annotation-taken-back"),
        pytest.param(EARLY, LATE, id="annotation-set-back"),
        pytest.param(LATE, LATE, id="nothing-new"),
        pytest.param("2026-03-01T12:00:00+01:00", None, id="the-same-in-another-zone"),
        pytest.param(LATE, "gibberish", id="somebody-wrote-into-the-status"),
    ],
)
def test_the_newest_time_counts(asked: str | None, kept: str | None) -> None:
    assert revision(asked, kept) == revision(LATE)


def test_the_status_keeps_it() -> None:
    wanted = wanted_of(model(LATE, EARLY))
    assert status(wanted, make_observed(wanted), CONFIG, NOW)["restartedAt"] == LATE
    plain = make_wanted()
    assert "restartedAt" not in status(plain, make_observed(plain), CONFIG, NOW)


@pytest.mark.parametrize("text", ["now", "2026-03-01", "2026-03-01T10:00:00", "1767225600"])
def test_what_is_no_time_is_refused_and_restarts_nothing(text: str) -> None:
    with pytest.raises(InvalidSpec, match="such as 2026-03-01T12:00:00Z") as error:
        parse(model(text, EARLY))
    assert error.value.path == "metadata.annotations[stoker.dev/restarted-at]"
    assert held(salvage(model(text, EARLY)), error.value, 1).revision == revision(EARLY)
