"""Batches as JSON objects, and the lines of their results. Knows no disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

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


def is_over(reply: BatchReply) -> bool:
    """Nothing will become of it any more."""
    return reply.status in ("completed", "failed", "expired", "cancelled")
