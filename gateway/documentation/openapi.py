"""The OpenAPI document of the routes an application has, from the tables and structs that requests and replies use.

Nothing is written here that could drift: what is served comes from the router, what is taken from the field tables,
what is answered from the response structs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ortserve.gateway.documentation.bodies import body_shape
from ortserve.gateway.documentation.operations import Operation, operation_of
from ortserve.gateway.documentation.replies import ReplyShapes
from ortserve.gateway.request_fields.endpoints import BODIES
from ortserve.gateway.request_fields.queries import QUERIES, QueryParameter

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the path of the offending field"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
HEADERS: dict[str, Any] = {
    "x-request-id": {"schema": {"type": "string"}},
    "x-ortserve-ignored": {"schema": {"type": "string"}, "description": "fields of the request without effect"},
}


def openapi_document(endpoints: Iterable[tuple[str, str]], *, version: str, base_path: str = "") -> dict[str, Any]:
    """OpenAPI 3.1 of (method, path) pairs; converters of paths, as in `{id:path}`, are dropped."""
    shapes = ReplyShapes()
    paths: dict[str, dict[str, Any]] = {}
    for method, routed in endpoints:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", routed)
        operation = operation_of(method, path) or Operation(method, path, path)
        paths.setdefault(path, {})[method.lower()] = _operation(operation, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ortserve",
            "version": version,
            "description": "OpenAI's and Anthropic's APIs. Unknown fields are accepted and named in a header.",
        },
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": {**shapes.components, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation, shapes: ReplyShapes) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z0-9]+', '_', operation.path)}".strip("_"),
        "responses": {
            "200": {"description": "The reply", "headers": HEADERS, "content": _content(operation, shapes)},
            "default": {
                "description": "A refusal or a failure",
                "headers": HEADERS,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    parameters += map(_parameter, QUERIES.get((operation.method, operation.path), ()))
    if parameters:
        found["parameters"] = parameters
    table = next((body.table for body in BODIES if body.path == operation.path), None)
    if operation.method == "POST" and table is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body_shape(table)}}}
    return found


def _parameter(query: QueryParameter) -> dict[str, Any]:
    style = {"style": "deepObject", "explode": True} if query.is_deep else {}
    return {"name": query.name, "in": "query", "schema": query.shape, "description": query.note, **style}


def _content(operation: Operation, shapes: ReplyShapes) -> dict[str, Any]:
    if isinstance(operation.reply, str):
        return {operation.reply: {"schema": {"type": "string"}}}
    shape = {"type": "object"} if operation.reply is None else shapes.of(operation.reply)
    content: dict[str, Any] = {"application/json": {"schema": shape}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content
