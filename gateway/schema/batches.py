"""Batches as JSON objects, the body that begins one, and the lines of its files. Knows no disk."""

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

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class BatchCounts(msgspec.Struct, frozen=True):
    """Requests of a batch by what became of them."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchInputDetails(msgspec.Struct, frozen=True):
    """Input tokens that were not computed."""

    cached_tokens: int = 0


class BatchOutputDetails(msgspec.Struct, frozen=True):
    """Output tokens before the answers."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    """Tokens of all answers of a batch."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: BatchInputDetails = BatchInputDetails()
    output_tokens_details: BatchOutputDetails = BatchOutputDetails()

    @staticmethod
    def of(num_input: int, num_output: int, *, num_cached: int, num_reasoning: int) -> BatchUsage:
        """From plain counts."""
        details = BatchInputDetails(num_cached), BatchOutputDetails(num_reasoning)
        return BatchUsage(num_input, num_output, num_input + num_output, *details)

    def plus(self, other: BatchUsage) -> BatchUsage:
        """Both together."""
        return BatchUsage.of(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            num_cached=self.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens,
            num_reasoning=self.output_tokens_details.reasoning_tokens + other.output_tokens_details.reasoning_tokens,
        )


class BatchProblem(msgspec.Struct, frozen=True):
    """Why a line, or the whole file, cannot be run."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    """Why a batch has failed."""

    data: list[BatchProblem]
    object: Literal["list"] = "list"


class BatchReply(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. Times are seconds since the epoch, None for what has not happened."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created_at: int
    expires_at: int
    metadata: Mapping[str, str] | None = None
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = BatchCounts()
    usage: BatchUsage = BatchUsage()
    model: str | None = None  # of the answers; None before the first one
    object: Literal["batch"] = "batch"


class BatchLine(msgspec.Struct, frozen=True):
    """One request of the input file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class LineResponse(msgspec.Struct, frozen=True):
    """What one request was answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    """Why one request was not run."""

    code: str
    message: str


class BatchResult(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None


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


def is_over(reply: BatchReply) -> bool:
    """Nothing will become of it any more."""
    return reply.status in ("completed", "failed", "expired", "cancelled")
