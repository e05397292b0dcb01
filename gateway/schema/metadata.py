"""`metadata`: up to 16 pairs of strings that a client attaches to an object. Knows no object."""

from __future__ import annotations

from collections.abc import Mapping

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields, missing

MAX_PAIRS = 16
MAX_KEY_LENGTH = 64
MAX_VALUE_LENGTH = 512


def read_metadata(fields: Fields) -> Mapping[str, str] | None:
    """The pairs, None when absent. Pairs whose value is null are left out."""
    metadata = fields.object("metadata")
    if metadata is None:
        return None
    if len(metadata.data) > MAX_PAIRS:
        message = f"Invalid 'metadata': too many properties. Expected at most {MAX_PAIRS} key-value pairs."
        raise bad_request(message, param="metadata", code="object_above_max_properties")
    pairs: dict[str, str] = {}
    for key in metadata.data:
        if len(key) > MAX_KEY_LENGTH:
            message = f"Invalid 'metadata': key '{key[:MAX_KEY_LENGTH]}...' is longer than {MAX_KEY_LENGTH} characters."
            raise bad_request(message, param="metadata", code="invalid_value")
        value = metadata.string(key, max_length=MAX_VALUE_LENGTH)
        if value is not None:
            pairs[key] = value
    return pairs


def read_new_metadata(fields: Fields) -> Mapping[str, str]:
    """The body of updates: pairs that take the place of the old ones."""
    if "metadata" not in fields.data:
        raise missing("metadata")
    return read_metadata(fields) or {}
