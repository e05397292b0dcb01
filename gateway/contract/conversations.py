"""POST on /v1/conversations and below, field by field."""

from __future__ import annotations

from ortserve.gateway.contract.rules import honoured, required
from ortserve.gateway.contract.shapes import ANYTHING, STRING, array, mapping
from ortserve.gateway.contract.table import FieldTable
from ortserve.gateway.schema.conversations import MAX_NEW_ITEMS

CONVERSATIONS = FieldTable(
    (
        honoured("items", array(ANYTHING, max_items=MAX_NEW_ITEMS), "as `input` of responses, without references"),
        honoured("metadata", mapping(STRING), "kept and shown"),
    )
)
METADATA_UPDATE = FieldTable((required("metadata", mapping(STRING), "in place of the old; null: none"),))
CONVERSATION_ITEMS = FieldTable(
    (required("items", array(ANYTHING, min_items=1, max_items=MAX_NEW_ITEMS), "as `input` of responses"),)
)
