"""How much a new status tells: progress, other words, or the same words in other digits. Pure."""

from __future__ import annotations

import enum
import re
from typing import Any

from stoker_operator.observed import Manifest
from stoker_operator.status.transient import TRANSIENT

# A run of letters, digits and what joins them, with a digit in it: a count, an address, an id of a request.
_VOLATILE = re.compile(r"[\w.:-]*\d[\w.:-]*")


class Change(enum.IntEnum):
    """How a status differs from the one that is stored, in rising order."""

    NONE = 0
    VOLATILE = 1  # the same words in other digits and ids
    TEXT = 2  # other words
    PROGRESS = 3  # another count, address, generation, or another answer of a condition, which tools wait for


def change(stored: Manifest, wanted: Manifest) -> Change:
    """Return how the wanted status differs from the stored one; other people's conditions do not count."""
    if _facts(stored) != _facts(wanted):
        return Change.PROGRESS
    before = {condition["type"]: condition for condition in stored.get("conditions", ())}
    if (before.keys() & TRANSIENT) - {condition["type"] for condition in wanted.get("conditions", ())}:
        return Change.PROGRESS
    after = [(before.get(condition["type"], {}), condition) for condition in wanted.get("conditions", ())]
    return max((_condition_change(old, new) for old, new in after), default=Change.NONE)


def words(status: Manifest) -> str:
    """Return what a status says, without digits and ids."""
    conditions = status.get("conditions", ())
    told = [(c["type"], c["status"], c["reason"], _without_digits(c["message"])) for c in conditions]
    return repr((_facts(status), told))


def _facts(status: Manifest) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name != "conditions"}


def _condition_change(old: Manifest, new: Manifest) -> Change:
    if old.get("observedGeneration") != new["observedGeneration"]:
        return Change.PROGRESS
    if old.get("status") != new["status"]:
        return Change.PROGRESS
    if old.get("reason") != new["reason"]:
        return Change.TEXT
    if old.get("message") == new["message"]:
        return Change.NONE if all(old.get(name) == value for name, value in new.items()) else Change.TEXT
    same = _without_digits(str(old.get("message"))) == _without_digits(new["message"])
    return Change.VOLATILE if same else Change.TEXT


def _without_digits(text: str) -> str:
    return _VOLATILE.sub("#", text)
