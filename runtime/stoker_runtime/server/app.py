"""The ASGI application: its routes, and how every failure becomes an OpenAI error body."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.requests import Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stoker_runtime import __version__
from stoker_runtime.errors import RequestError
from stoker_runtime.server import inference, openapi
from stoker_runtime.server.body import read_body
from stoker_runtime.server.entry import Entry
from stoker_runtime.server.problems import client_gone, error_response
from stoker_runtime.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from stoker_runtime.server.serving import Serving

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(serving: Serving) -> FastAPI:
    """Return the ASGI application that serves one model."""
    app = FastAPI(
        title="Stoker runtime", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    for routes in (_openai_routes(serving), _token_routes(serving), _operations_routes(serving)):
        app.include_router(routes)
    bodies: list[type[BaseModel]] = [CompletionBody, ChatBody, TokenizeBody, DetokenizeBody]
    app.openapi = openapi.document(app, bodies)  # type: ignore[method-assign]
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_middleware(Entry, serving=serving)
    return app


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    request.state.record.error = error.code
    return error_response(error)


def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer the framework's own refusals, such as 404 and 405, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    known = {
        404: (f"there is nothing at {request.url.path}", "not_found"),
        405: (f"{request.url.path} does not take {request.method}", "method_not_allowed"),
    }
    text, code = known.get(error.status_code, (error.detail, None))
    return error_response(RequestError(text, status=error.status_code, code=code), headers=error.headers)


def _on_client_gone(request: Request, error: Exception) -> Response:
    gone = client_gone()
    request.state.record.error = gone.code
    return error_response(gone)


def _openai_routes(serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/v1")
    refusals = openapi.errors(400, 404, 413, 415, 429, 500, 503)

    def model_card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": serving.started_at,
            "owned_by": "stoker",
            "max_model_len": None if serving.client.ready is None else serving.max_model_len,
        }

    @router.get("/models")
    async def list_models() -> Response:
        """List the names of the model that is served."""
        cards = [model_card(name) for name in serving.config.served_model_names]
        return _json({"object": "list", "data": cards})

    @router.get("/models/{model:path}", responses=openapi.errors(404))
    async def get_model(model: str) -> Response:
        """Describe one model."""
        serving.check_model(model)
        return _json(model_card(model))

    @router.post("/completions", openapi_extra=openapi.takes(CompletionBody), responses=refusals)
    async def completions(request: Request) -> Response:
        """Continue one or more prompts."""
        return await inference.complete(serving, request)

    @router.post("/chat/completions", openapi_extra=openapi.takes(ChatBody), responses=refusals)
    async def chat_completions(request: Request) -> Response:
        """Answer a chat."""
        return await inference.chat(serving, request)

    return router


def _token_routes(serving: Serving) -> APIRouter:
    """Return vLLM's endpoints between text and tokens."""
    router = APIRouter()
    refusals = openapi.errors(400, 404, 413, 415, 503)

    @router.post("/tokenize", openapi_extra=openapi.takes(TokenizeBody), responses=refusals)
    async def tokenize(request: Request) -> Response:
        """Return the tokens of a prompt or of messages."""
        body = await read_body(request, TokenizeBody, serving.config.max_request_bytes)
        serving.check_model(body.model)
        text, _ = serving.loaded()
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            tokens = (await text.prompt_ids([body.prompt], add_special_tokens=special))[0]
        else:
            assert body.messages is not None
            chat = await text.chat(
                [message.model_dump(exclude_none=True) for message in body.messages],
                add_generation_prompt=body.add_generation_prompt is not False,
                add_special_tokens=bool(body.add_special_tokens),
                extra=body.chat_template_kwargs,
            )
            tokens = chat.token_ids
        return _json(
            {
                "count": len(tokens),
                "max_model_len": serving.max_model_len,
                "tokens": tokens,
                "token_strs": await text.token_names(tokens) if body.return_token_strs else None,
            }
        )

    @router.post("/detokenize", openapi_extra=openapi.takes(DetokenizeBody), responses=refusals)
    async def detokenize(request: Request) -> Response:
        """Return the text of tokens."""
        body = await read_body(request, DetokenizeBody, serving.config.max_request_bytes)
        serving.check_model(body.model)
        text, ready = serving.loaded()
        text.check_known(body.tokens, ready.vocab_size, "tokens")
        return _json({"prompt": await text.text(body.tokens)})

    return router


def _operations_routes(serving: Serving) -> APIRouter:
    """Return what kubelets, scrapers and the operator ask for."""
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "The engine is dead or silent."}})
    async def health() -> Response:
        """Say whether the engine lives."""
        if serving.client.is_healthy:
            return _json({"status": "ok"})
        dead = serving.client.dead
        return _json(
            {"status": "unhealthy", "reason": "EngineSilent" if dead is None else f"EngineDead: {dead}"}, 503
        )

    @router.get("/ready", responses={503: {"description": "Loading, draining or unhealthy."}})
    async def ready() -> Response:
        """Say whether new requests should come here."""
        reason = serving.not_ready_reason
        return _json({"status": "ready"}) if reason is None else _json({"reason": reason}, 503)

    @router.get("/load")
    async def load() -> Response:
        """Say how many inference requests are not yet fully answered."""
        return _json({"in_flight": serving.in_flight, "draining": serving.is_draining})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(serving.metrics.render(), headers={"content-type": _METRICS_TYPE})

    @router.get("/version")
    async def version() -> Response:
        """Return the runtime's version."""
        return _json({"version": __version__})

    return router
