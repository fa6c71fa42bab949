"""Reads what a kubelet says about a pod whose containers cannot be created; it says so in Events alone."""

import logging
from typing import Any

from stoker_operator.cluster.client import KubeClient
from stoker_operator.cluster.errors import ApiError, ApiUnreachable
from stoker_operator.cluster.resources import EVENTS

logger = logging.getLogger(__name__)

Object = dict[str, Any]

MAX_WARNINGS = 50  # of one pod; a warning that comes again is counted, not written anew
_REASONS = frozenset({"FailedMount", "FailedMapVolume", "FailedAttachVolume", "FailedCreatePodSandBox"})


async def newest_warning(client: KubeClient, pod: Object) -> str:
    """The newest warning about a pod's volumes or sandbox; "" when there is none or it cannot be read."""
    metadata = pod["metadata"]
    selector = f"regarding.uid={metadata['uid']},type=Warning"
    try:
        page = await client.list_page(
            EVENTS, metadata["namespace"], "", MAX_WARNINGS, field_selector=selector
        )
    except (ApiError, ApiUnreachable) as error:
        # The status then says where to look, which is as much as can be known.
        logger.info("events of pod %s were not read: %s", metadata["name"], error)
        return ""
    found = [event for event in page.items if _is_about(event, metadata["uid"])]
    return str(max(found, key=_last_seen).get("note") or "") if found else ""


def _is_about(event: Object, uid: str) -> bool:
    return (event.get("regarding") or {}).get("uid") == uid and event.get("reason") in _REASONS


def _last_seen(event: Object) -> str:
    """When it was seen last; all of these are RFC 3339 in UTC, whose order is that of their text."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, times), event["metadata"].get("creationTimestamp") or ""))
