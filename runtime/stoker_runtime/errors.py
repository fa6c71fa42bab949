"""The exceptions of the runtime and where each one ends.

StokerError
├── ConfigError    a flag or a model that cannot work   -> exit status 2 and the termination message
├── ModelError     the model cannot be had or loaded    -> exit status 3 and the termination message
├── EngineDead     the engine process is gone           -> HTTP 503, error event on streams, exit status 1
└── RequestError   one request cannot be served         -> its HTTP status, OpenAI error body
"""

from __future__ import annotations


class StokerError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(StokerError):
    """A flag, environment variable or model configuration that cannot work; the text names it and the fix."""


class ModelError(StokerError):
    """The model cannot be found, downloaded or loaded.

    Args:
        message: what is wrong and what to do about it.
        reason: CamelCase word for a status condition: ModelNotFound, ModelAccessDenied, DownloadFailed,
            DiskFull, UnsupportedModel, InvalidModel or OutOfMemory.
    """

    def __init__(self, message: str, reason: str = "InvalidModel") -> None:
        super().__init__(message)
        self.reason = reason


class EngineDead(StokerError):
    """The engine process ended or stopped stepping; nothing more will be answered."""


class RequestError(StokerError):
    """One request cannot be served.

    Args:
        message: what is wrong with the request and what would be right.
        status: HTTP status, 4xx or 5xx.
        param: the request field at fault, as the client spelt it.
        code: OpenAI error code, such as ``context_length_exceeded``.
        error_type: OpenAI error type.
        retry_after_s: seconds for a Retry-After header; None sends no header.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        error_type: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.error_type = error_type
        self.retry_after_s = retry_after_s
