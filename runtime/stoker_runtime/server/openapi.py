"""The OpenAPI document: routes that read their body themselves still say which schema it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

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


def document(app: FastAPI, models: list[type[BaseModel]]) -> Callable[[], dict[str, Any]]:
    """Return what replaces app.openapi: the document with the bodies' schemas, built once."""
    built: dict[str, Any] = {}

    def build() -> dict[str, Any]:
        if not built:
            built.update(get_openapi(title=app.title, version=app.version, routes=app.routes))
            _, definitions = models_json_schema(
                [(model, "validation") for model in models], ref_template=_REF
            )
            schemas = built.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            schemas["Error"] = _ERROR_SCHEMA
        return built

    return build
