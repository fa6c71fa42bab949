"""What a ModelDeployment's status should say, and which Events tell the story. Pure."""

from stoker_operator.status.changes import Change, change, words
from stoker_operator.status.conditions import status
from stoker_operator.status.story import Event, events

__all__ = ["Change", "Event", "change", "events", "status", "words"]
