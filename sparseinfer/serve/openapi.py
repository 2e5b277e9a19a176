"""The document at /openapi.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"


def json_body(request: type[BaseModel]) -> dict[str, Any]:
    """What the document says of a route that parses its body itself."""
    schema = {"$ref": _REFERENCE.format(model=request.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_requests(app: FastAPI, requests: Sequence[type[BaseModel]]) -> None:
    """Puts the schemas of request bodies into the document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = models_json_schema(
                [(request, "validation") for request in requests], ref_template=_REFERENCE
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
