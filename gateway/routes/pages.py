"""Query parameters of lists, and lists as replies. Knows no store."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.answers.lists import ListReply
from ortserve.gateway.errors import ApiError, bad_request
from ortserve.gateway.request_fields.queries import ORDERS
from ortserve.gateway.routes.bodies import json_response
from ortserve.gateway.schema.fields import check_range, invalid_value
from ortserve.gateway.store.pages import CursorError, Page, PageRequest


def read_page(request: Request, *, default: int = 20, maximum: int = 100, ascending: bool = False) -> PageRequest:
    """`limit`, `order`, `after` and `before`. Raises `ApiError` (400) naming what is wrong."""
    query = request.query_params
    limit = query_integer(request, "limit", 1, maximum)
    order = query.get("order")
    if order is not None and order not in ORDERS:
        raise invalid_value("order", order, ORDERS)
    return PageRequest(
        limit=default if limit is None else limit,
        ascending=ascending if order is None else order == "asc",
        after=query.get("after"),
        before=query.get("before"),
    )


def query_integer(request: Request, name: str, minimum: int, maximum: int) -> int | None:
    """A whole number of the query, None when absent."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        message = f"Invalid type for '{name}': expected an integer, but got '{text[:40]}' instead."
        raise bad_request(message, param=name, code="invalid_type")
    check_range(name, "integer", int(text), minimum, maximum)
    return int(text)


def query_flag(request: Request, name: str) -> bool:
    """A boolean of the query, false when absent."""
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false"):
        raise invalid_value(name, text, ("true", "false"))
    return text == "true"


def query_words(request: Request, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """All values of a repeated parameter, with or without brackets."""
    words = [*request.query_params.getlist(name), *request.query_params.getlist(f"{name}[]")]
    for word in words:
        if word not in known:
            raise invalid_value(name, word, known)
    return tuple(words)


def query_pairs(request: Request, name: str) -> dict[str, str]:
    """Pairs sent as `name[key]=value`."""
    pairs = {}
    for key, value in request.query_params.items():
        if key.startswith(f"{name}[") and key.endswith("]"):
            pairs[key[len(name) + 1 : -1]] = value
    return pairs


def list_response(page: Page[tuple[str, bytes]]) -> Response:
    """A page of (id, JSON)."""
    ids = [id for id, _ in page.elements]
    data = [msgspec.Raw(body) for _, body in page.elements]
    first, last = (ids[0], ids[-1]) if ids else ("", "")
    return json_response(ListReply(data, first, last, page.has_more))


def wrong_cursor(error: CursorError, request: Request) -> ApiError:
    """A 400 naming the cursor that is not in the list."""
    value = request.query_params.get(error.parameter)
    message = f"Invalid '{error.parameter}': no object with id '{value}' is in this list."
    return bad_request(message, param=error.parameter, code="invalid_value")
