"""The ASGI application: its routes, and how every failure becomes an OpenAI error body."""

from __future__ import annotations

from functools import partial
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
from stoker_runtime.server.keys import DrainKey
from stoker_runtime.server.paths import Paths
from stoker_runtime.server.problems import client_gone, error_response
from stoker_runtime.server.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from stoker_runtime.server.serving import Serving

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHOWN_PATH = 256  # characters of a path that does not exist


def create_app(serving: Serving) -> FastAPI:
    """Return the ASGI application that serves one model."""
    app = FastAPI(
        title="Stoker runtime", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    routers = (_openai_routes(serving), _token_routes(serving), _operations_routes(serving))
    for routes in routers:
        app.include_router(routes)
    found = [getattr(route, "path", "") for routes in routers for route in routes.routes]
    paths = Paths({"/openapi.json", *(path for path in found if "{" not in path)}, serving.config.root_path)
    bodies: list[type[BaseModel]] = [CompletionBody, ChatBody, TokenizeBody, DetokenizeBody]
    config = serving.config
    app.openapi = openapi.document(app, bodies, config.root_path, bool(config.api_keys))  # type: ignore[method-assign]
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, partial(_on_http_error, paths))
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_middleware(Entry, serving=serving, paths=paths)
    return app


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    request.state.record.error = error.code
    return error_response(error)


def _on_http_error(paths: Paths, request: Request, error: Exception) -> Response:
    """Answer what no route takes: OPTIONS with what its path takes, the rest in OpenAI's form."""
    assert isinstance(error, HTTPException)
    visit = request.state.visit
    method, path = visit.asked_method, visit.asked_path[:_SHOWN_PATH]
    if error.status_code == 405:
        allowed = _allowed((error.headers or {}).get("Allow", ""))
        headers = {"allow": ", ".join(allowed)}
        if method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        text = f"{path} does not take {method}; it takes {', '.join(allowed)}"
        return error_response(RequestError(text, status=405, code="method_not_allowed"), headers=headers)
    if error.status_code == 404 and (method, path) == ("OPTIONS", "*"):
        return Response(status_code=204, headers={"allow": ", ".join(_allowed("GET, POST"))})
    if error.status_code == 404:
        nearest = paths.nearest(path)
        text = f"there is nothing at {path}" + (f"; did you mean {nearest}?" if nearest else "")
        return error_response(RequestError(text, status=404, code="not_found"))
    return error_response(RequestError(error.detail, status=error.status_code), headers=error.headers)


def _allowed(methods: str) -> list[str]:
    """Return the methods that a path takes, given those of its routes."""
    found = {method.strip() for method in methods.split(",") if method.strip()} | {"OPTIONS"}
    return sorted(found | {"HEAD"} if "GET" in found else found)


def _on_client_gone(request: Request, error: Exception) -> Response:
    gone = client_gone()
    request.state.record.error = gone.code
    return error_response(gone)


def _openai_routes(serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/v1")
    answered = openapi.events("The answer, or its events where `stream` is true.")
    answers = answered | openapi.errors(400, 404, 408, 413, 415, 429, 500, 503)

    def model_card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": serving.started_at,
            "owned_by": "stoker",
            "root": serving.config.model or serving.config.served_model_names[0],
            "parent": None,
            "max_model_len": None if serving.client.ready is None else serving.max_model_len,
            "permission": [_permission(name, serving.started_at)],
        }

    @router.get("/models")
    async def list_models() -> Response:
        """List the names of the model that is served."""
        cards = [model_card(name) for name in serving.config.served_model_names]
        return _json({"object": "list", "data": cards})

    @router.get("/models/{model:path}", responses=openapi.errors(404))
    async def get_model(model: str) -> Response:
        """Describe one model."""
        names = serving.config.served_model_names
        alike = [name for name in names if name.strip("/") == model.strip("/")]  # it may be a folder's path
        name = model if model in names or not alike else alike[0]
        serving.check_name(name)
        return _json(model_card(name))

    @router.post("/completions", openapi_extra=openapi.takes(CompletionBody), responses=answers)
    async def completions(request: Request) -> Response:
        """Continue one or more prompts."""
        return await inference.complete(serving, request)

    @router.post("/chat/completions", openapi_extra=openapi.takes(ChatBody), responses=answers)
    async def chat_completions(request: Request) -> Response:
        """Answer a chat."""
        return await inference.chat(serving, request)

    return router


def _permission(name: str, created: int) -> dict[str, Any]:
    """Return what everybody may do with a model, in the form that OpenAI's model cards once had."""
    may = {"sampling", "logprobs", "view"}
    every = ("create_engine", "sampling", "logprobs", "search_indices", "view", "fine_tuning")
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        **{f"allow_{what}": what in may for what in every},
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


def _token_routes(serving: Serving) -> APIRouter:
    """Return vLLM's endpoints between text and tokens."""
    router = APIRouter()
    refusals = openapi.errors(400, 404, 408, 413, 415, 429, 503)

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
            tokens = (await inference.rendered(text, body, request.state.record)).token_ids
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
    drain_key = DrainKey(serving.config.drain_key)
    scraped = openapi.text(_METRICS_TYPE.partition(";")[0], "The metrics.")

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
        """Say how many inference requests are not yet fully answered; server_load is vLLM's name for it."""
        return _json(serving.load)

    @router.post("/drain", include_in_schema=False)  # no client's business
    async def drain(request: Request) -> Response:
        """Take the server out of service for good; say what is not yet fully answered, as /load does."""
        refusal = drain_key.refusal(request.scope["headers"])
        if refusal is not None:
            raise refusal
        serving.drain()
        return _json(serving.load)

    @router.get("/metrics", response_class=Response, responses=scraped)  # else it says that there may be JSON
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(serving.metrics.render(), headers={"content-type": _METRICS_TYPE})

    @router.get("/version")
    async def version() -> Response:
        """Return the runtime's version."""
        return _json({"version": __version__})

    return router
