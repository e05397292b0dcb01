"""POST /v1/batches, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import honoured, required
from ortserve.gateway.request_fields.shapes import OBJECT, STRING, integer, mapping, words
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.batches import ENDPOINTS, WINDOWS
from ortserve.gateway.schema.files import MAX_TTL_S, MIN_TTL_S

BATCHES = FieldTable(
    (
        required("input_file_id", STRING, "a file with the purpose `batch`"),
        required("endpoint", words(*ENDPOINTS), "of every line"),
        required("completion_window", words(*WINDOWS)),
        honoured("metadata", mapping(STRING), "kept and shown"),
        honoured("output_expires_after", OBJECT, "absent: 30 days"),
        required("output_expires_after.anchor", words("created_at")),
        required("output_expires_after.seconds", integer(MIN_TTL_S, MAX_TTL_S)),
    )
)
