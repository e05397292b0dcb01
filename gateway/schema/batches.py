"""The body that begins a batch, and the lines of its file. Knows no disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from ortserve.gateway.schema.fields import Fields, missing
from ortserve.gateway.schema.files import MAX_TTL_S, MIN_TTL_S
from ortserve.gateway.schema.metadata import read_metadata

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
WINDOWS = ("24h",)
WINDOW_S = 24 * 3600
MAX_ID_LENGTH = 512


class BatchLine(msgspec.Struct, frozen=True):
    """One request of the input file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What begins one. `output_ttl_s`: seconds its results are kept, None as long as other files."""

    endpoint: str
    input_file_id: str
    metadata: Mapping[str, str] | None
    output_ttl_s: int | None


def read_batch_call(fields: Fields) -> NewBatch:
    """The body of POST /v1/batches."""
    input_file_id = fields.required_string("input_file_id")
    endpoint = fields.choice("endpoint", ENDPOINTS)
    if endpoint is None:
        raise missing("endpoint")
    if fields.choice("completion_window", WINDOWS) is None:
        raise missing("completion_window")
    return NewBatch(endpoint, input_file_id, read_metadata(fields), _read_output_ttl(fields))


def _read_output_ttl(fields: Fields) -> int | None:
    expiry = fields.object("output_expires_after")
    if expiry is None:
        return None
    if expiry.choice("anchor", ("created_at",)) is None:
        raise missing(expiry.name("anchor"))
    seconds = expiry.integer("seconds", MIN_TTL_S, MAX_TTL_S)
    if seconds is None:
        raise missing(expiry.name("seconds"))
    return seconds
