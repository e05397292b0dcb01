"""Query parameters of each endpoint that has some, and the bounds they are read with. Knows no handler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.request_fields.shapes import BOOLEAN, STRING, Shape, array, integer, mapping, words
from ortserve.gateway.schema.responses import INCLUDABLE

ORDERS = ("asc", "desc")
MAX_FILES = 10_000  # of a page
MAX_EVENTS = 10**9  # of a response
DEFAULT_ENTRIES = 1000
MAX_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """One name in a query. With `is_deep`, pairs are sent as `name[key]=value`."""

    name: str
    shape: Shape
    note: str
    is_deep: bool = False


def _page(*, default: int = 20, maximum: int = 100, order: str = "desc") -> tuple[QueryParameter, ...]:
    return (
        QueryParameter("limit", {**integer(1, maximum), "default": default}, "objects of a page"),
        QueryParameter("order", {**words(*ORDERS), "default": order}, "by the time they were made"),
        QueryParameter("after", STRING, "the id that the page follows"),
        QueryParameter("before", STRING, "the id that the page precedes"),
    )


INCLUDE = QueryParameter("include", array(words(*INCLUDABLE)), "repeated; also as `include[]`")
QUERIES: Mapping[tuple[str, str], tuple[QueryParameter, ...]] = {
    ("GET", "/v1/chat/completions"): (
        *_page(order="asc"),
        QueryParameter("model", STRING, "only those of this model"),
        QueryParameter("metadata", mapping(STRING), "only those with these pairs", is_deep=True),
    ),
    ("GET", "/v1/chat/completions/{id}/messages"): _page(order="asc"),
    ("GET", "/v1/responses/{id}"): (
        INCLUDE,
        QueryParameter("stream", BOOLEAN, "its events instead"),
        QueryParameter("starting_after", integer(0, MAX_EVENTS), "with `stream`: the number of the last event known"),
    ),
    ("GET", "/v1/responses/{id}/input_items"): (*_page(), INCLUDE),
    ("POST", "/v1/conversations/{id}/items"): (INCLUDE,),
    ("GET", "/v1/conversations/{id}/items"): (*_page(), INCLUDE),
    ("GET", "/v1/conversations/{id}/items/{item_id}"): (INCLUDE,),
    ("GET", "/v1/files"): (
        *_page(default=MAX_FILES, maximum=MAX_FILES),
        QueryParameter("purpose", STRING, "only those of this purpose"),
    ),
    ("GET", "/v1/batches"): _page(),
    ("GET", "/admin/cache/entries"): (
        QueryParameter("limit", {**integer(0, MAX_ENTRIES), "default": DEFAULT_ENTRIES}, "entries shown"),
    ),
}
