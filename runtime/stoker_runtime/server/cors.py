"""Which pages may ask from a browser: Starlette's middleware, with errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from stoker_runtime.config import ServerConfig
from stoker_runtime.errors import RequestError
from stoker_runtime.server.problems import error_response


def with_cors(app: ASGIApp, config: ServerConfig, exposed: Sequence[str]) -> ASGIApp:
    """Let the pages of some origins ask, where the server is told which.

    Args:
        app: what answers them.
        config: says which origins, and what they may send.
        exposed: headers of answers that their scripts may read.
    """
    if not config.allowed_origins:
        return app
    return _Cors(
        app,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
        allow_private_network=True,  # whoever lets a page of the internet ask wants it to reach this address
        expose_headers=exposed,
    )


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer what a browser asks before it lets a page ask."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        error = RequestError(
            f"{bytes(response.body).decode()} for pages of {request_headers['origin']}; "
            "see --allowed-origins, --allowed-methods and --allowed-headers",
            code="cors_not_allowed",
        )
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(error, headers=kept)
