"""Bodies of the conversation endpoints, field by field. Knows no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.items import Item, check_no_references, read_items
from ortserve.gateway.schema.metadata import read_metadata

MAX_NEW_ITEMS = 20  # at once, OpenAI's


@dataclass(frozen=True, slots=True)
class NewConversation:
    """What one begins with."""

    items: tuple[Item, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_conversation_call(fields: Fields) -> NewConversation:
    """The body of POST /v1/conversations; everything in it may be absent."""
    return NewConversation(_read_new_items(fields) if fields.has("items") else (), read_metadata(fields) or {})


def read_new_items(fields: Fields) -> tuple[Item, ...]:
    """The body of POST /v1/conversations/{id}/items."""
    return _read_new_items(fields)


def _read_new_items(fields: Fields) -> tuple[Item, ...]:
    items = read_items(fields, "items", max_items=MAX_NEW_ITEMS)
    check_no_references(items, "items")
    return items
