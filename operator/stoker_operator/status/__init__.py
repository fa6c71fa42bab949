"""What a ModelDeployment's status should say, and which Events tell the story. Pure."""

from stoker_operator.status.conditions import invalid_status, status
from stoker_operator.status.story import Event, events

__all__ = ["Event", "events", "invalid_status", "status"]
