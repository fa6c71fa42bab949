"""What an API call can end with, one class per thing a caller decides on.

Tree: ``ApiError`` > ``NotFound``, ``AlreadyExists``, ``Conflict``, ``Gone``, ``Forbidden``, ``Unauthorized``,
``Throttled``, ``Altered``; ``ApiUnreachable`` when no answer came, so nobody knows whether the call was
carried out.
"""

from typing import Any

from stoker_operator.retry import RetryLater


class ApiError(RetryLater):
    """The API server refused a call.

    Args:
        code: HTTP status.
        reason: CamelCase reason of the Status object, may be empty.
        message: text for a person.
        retry_after_s: what the server asked for, seconds; 0 when it did not.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code} {reason}: {message}".strip())
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class NotFound(ApiError):
    """No such object (404)."""


class AlreadyExists(ApiError):
    """Create of a name that is taken (409, reason AlreadyExists)."""


class Conflict(ApiError):
    """A precondition failed: the object changed, or is another one of the same name (409, of a patch 422)."""


class Gone(ApiError):
    """The resource version or continue token is too old (410): list again."""


class Forbidden(ApiError):
    """The service account may not do this (403)."""


class Unauthorized(ApiError):
    """The credentials are not accepted (401)."""


class Throttled(ApiError):
    """The server is busy (429, 503 with Retry-After): wait at least ``retry_after_s``."""


class Altered(ApiError):
    """The object was created, but what came back cannot do what it was made for; it was deleted again.

    Args:
        reason: CamelCase, for a condition.
        message: what is missing and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(422, reason, message)


class ApiUnreachable(RetryLater):
    """No answer: connection refused or reset, or a timeout. The call may have been carried out."""


_BY_CODE: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: Throttled,
}


def from_status(code: int, status: dict[str, Any], retry_after: str | None = None) -> ApiError:
    """Turn an error answer into its exception.

    Args:
        code: HTTP status, or ``code`` of an ERROR watch event.
        status: the Status object, or {} when the body was none.
        retry_after: the header, if there was one.
    """
    reason = str(status.get("reason") or "")
    details = status.get("details") or {}
    kind = _BY_CODE.get(code, ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExists
    elif code == 504 and "Too large resource version" in str(status.get("message") or ""):
        # A version that the server does not have yet, and after a restored backup never will have.
        kind = Gone
    elif code == 422 and any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ()):
        # To a patch the uid is no precondition but a field, which must not change.
        kind = Conflict
    seconds = retry_after or details.get("retryAfterSeconds") or 0
    try:
        retry_after_s = float(seconds)
    except ValueError:  # an HTTP date: not worth parsing, the back-off covers it
        retry_after_s = 0.0
    return kind(code, reason, str(status.get("message") or ""), retry_after_s)
