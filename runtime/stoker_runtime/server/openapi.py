"""The OpenAPI document: routes that read their body themselves still say which schema it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stoker_runtime.server.paths import needs_key

_REF = "#/components/schemas/{model}"

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """Return a route's openapi_extra for a JSON body."""
    reference = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return a route's responses for these error statuses."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {status: {"description": "An OpenAI error body.", "content": content} for status in statuses}


def text(content_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Return a route's responses where it answers with text."""
    return {200: {"description": description, "content": {content_type: {"schema": {"type": "string"}}}}}


def events(description: str) -> dict[int | str, dict[str, Any]]:
    """Return a route's responses where it answers with events as well as with JSON."""
    return {200: {"description": description, "content": {"text/event-stream": {}}}}


def document(
    app: FastAPI, models: list[type[BaseModel]], root_path: str, has_keys: bool
) -> Callable[[], dict[str, Any]]:
    """Return what replaces app.openapi: the document with the bodies' schemas, built once.

    Args:
        app: the application whose routes are described.
        models: the bodies that routes read themselves.
        root_path: prefix under which a proxy offers the routes.
        has_keys: whether clients need one.
    """
    built: dict[str, Any] = {}

    def build() -> dict[str, Any]:
        if not built:
            servers = [{"url": root_path}] if root_path else None
            built.update(
                get_openapi(title=app.title, version=app.version, routes=app.routes, servers=servers)
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template=_REF
            )
            schemas = built.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            schemas["Error"] = _ERROR_SCHEMA
            if has_keys:
                _ask_for_keys(built)
        return built

    return build


def _ask_for_keys(built: dict[str, Any]) -> None:
    """Say which operations want a key, and what they answer without."""
    built["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in built["paths"].items():
        if needs_key(path):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                operation["responses"] |= {"401": errors(401)[401]}
