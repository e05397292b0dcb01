"""What may be said of an upload. Knows no disk."""

from __future__ import annotations

from collections.abc import Mapping

from ortserve.gateway.errors import bad_request, missing_parameter
from ortserve.gateway.schema.fields import check_range, invalid_value

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
BATCH_TTL_S = 30 * 24 * 3600
MIN_TTL_S, MAX_TTL_S = 3600, 2_592_000
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


def read_purpose(fields: Mapping[str, str]) -> str:
    """What the file is for; only batches read files here."""
    purpose = fields.get("purpose")
    if not purpose:
        raise missing_parameter("purpose")
    if purpose not in PURPOSES:
        raise invalid_value("purpose", purpose, PURPOSES)
    return purpose


def read_file_ttl(fields: Mapping[str, str], purpose: str) -> int | None:
    """Seconds the file is kept: what was asked for, 30 days for batches, else until it is deleted."""
    anchor, text = fields.get(ANCHOR), fields.get(SECONDS)
    if anchor is None and text is None:
        return BATCH_TTL_S if purpose == "batch" else None
    if anchor != "created_at":
        raise invalid_value(ANCHOR, anchor, ("created_at",))
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 12:
        message = f"Invalid type for '{SECONDS}': expected an integer."
        raise bad_request(message, param=SECONDS, code="invalid_type")
    check_range(SECONDS, "integer", int(text), MIN_TTL_S, MAX_TTL_S)
    return int(text)
