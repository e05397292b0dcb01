"""The OpenAPI document as one HTML page that loads nothing else. Knows no endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from ortserve.gateway.documentation.markdown import describe

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h2{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1rem}code{background:#f4f4f4;padding:0 .2em}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem;"
    "border-bottom:1px solid #eee}.m{color:#05a;font-weight:600}"
)


def html_page(document: Mapping[str, Any]) -> str:
    """Endpoints in order, each with the fields of its body."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
        f"<p>{escape(document['info']['description'])} <a href=openapi.json>openapi.json</a></p>",
    ]
    base = document["servers"][0]["url"].rstrip("/")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><span class=m>{method.upper()}</span> <code>{escape(base + path)}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}</p>")
            body = operation.get("requestBody")
            if body is not None:
                parts.append(_table(body["content"]["application/json"]["schema"]))
    return "\n".join(parts)


def _table(schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' *' if is_required else ''}"
        f"<td>{escape(describe(shape).replace('`', ''))}<td>{escape(_remarks(shape))}"
        for name, shape, is_required in _fields(schema, "")
    ]
    return "<table><tr><th>field<th>type<th>" + "".join(rows) + "</table>"


def _remarks(shape: Mapping[str, Any]) -> str:
    words = [str(shape[key]) for key in ("x-ortserve-verdict", "description") if key in shape]
    if shape.get("x-ortserve-extension"):
        words.append("(extension)")
    return ": ".join(words[:2]) + (f" {words[2]}" if len(words) > 2 else "")


def _fields(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    for name, shape in schema.get("properties", {}).items():
        yield f"{path}{name}", shape, name in schema.get("required", ())
        yield from _inner(shape, f"{path}{name}")


def _inner(shape: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    for option in shape.get("anyOf", ()):
        yield from _inner(option, path)
    if shape.get("type") == "array":
        yield from _inner(shape["items"], f"{path}[]")
    elif shape.get("type") == "object":
        yield from _fields(shape, f"{path}.")
