"""POST on /v1/conversations and below, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.items import ITEM
from ortserve.gateway.request_fields.rules import honoured, required
from ortserve.gateway.request_fields.shapes import OBJECT, STRING, array, mapping
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.conversations import MAX_NEW_ITEMS

NEW_ITEM = tuple(rule.below("items[]") for rule in ITEM)

CONVERSATIONS = FieldTable(
    (
        honoured("items", array(OBJECT, max_items=MAX_NEW_ITEMS), "as `input` of responses, without references"),
        *NEW_ITEM,
        honoured("metadata", mapping(STRING), "kept and shown"),
    )
)
METADATA_UPDATE = FieldTable((required("metadata", mapping(STRING), "in place of the old; null: none"),))
CONVERSATION_ITEMS = FieldTable(
    (
        required("items", array(OBJECT, min_items=1, max_items=MAX_NEW_ITEMS), "as `input` of responses"),
        *NEW_ITEM,
    )
)
