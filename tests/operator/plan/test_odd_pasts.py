"""What anybody may have written on the record of a revision."""

from __future__ import annotations

from operator_builders import make_record, make_wanted

from stoker_operator.api import labels
from stoker_operator.plan.pasts import noted_pasts


def test_a_note_that_is_nested_without_end_notes_nothing() -> None:
    stored = make_record(make_wanted())
    stored["metadata"]["annotations"] = {labels.FAILURES: "[" * 100_000}
    assert noted_pasts(stored) == ()
