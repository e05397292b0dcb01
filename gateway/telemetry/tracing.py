"""Requests as OpenTelemetry spans: the request, and in it the queue, the prefill and the decode of each sequence.

Spans are made when a request has ended, from times that were taken anyway: nothing is added to its path. Their names
and attributes follow the semantic conventions for generative AI where those have words. Holds no prompt, no reply and
no key. The library is an extra, imported only where traces are wanted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ortserve.gateway.options.tracing import TracingSettings
from ortserve.runtime.errors import ConfigurationError

if TYPE_CHECKING:
    from ortserve.gateway.exchange import Exchange
    from ortserve.gateway.replies.generation import SequenceTimes

NAME = "ortserve"
MAX_SEQUENCES = 16  # of one request that have spans: making them takes the event loop's time
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat", "/v1/messages": "chat", "/v1/responses": "chat",
    "/v1/completions": "text_completion", "/v1/embeddings": "embeddings",
}  # fmt: skip
Attributes = dict[str, str | int]


class Tracing:
    """The spans of one server."""

    def __init__(self, provider: Any) -> None:
        """`provider` is the SDK's `TracerProvider`, which samples, batches and sends."""
        self._provider = provider
        self._tracer = provider.get_tracer(NAME, version(NAME))

    def record(self, exchange: Exchange) -> None:
        """Take over a request that has ended; notes its trace for the access line."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(exchange.trace_headers)
        clock = _Clock()
        name = OPERATIONS.get(exchange.path, exchange.path)
        span = self._tracer.start_span(
            f"{name} {exchange.model}".strip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_request_attributes(exchange, name),
            start_time=clock.wall_ns(exchange.started),
        )
        exchange.trace_id = f"{span.get_span_context().trace_id:032x}"
        within = set_span_in_context(span)
        timings = exchange.timings
        for sequence in () if timings is None else timings.sequences[:MAX_SEQUENCES]:
            for phase, begin, end, attributes in _phases(sequence):
                part = self._tracer.start_span(
                    phase, context=within, attributes=attributes, start_time=clock.wall_ns(begin)
                )
                part.end(clock.wall_ns(end))
        if exchange.status >= 500 or exchange.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, exchange.error_code or ""))
        span.end(clock.wall_ns(time.monotonic()))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_tracing(settings: TracingSettings) -> Tracing | None:
    """None unless it is wanted. The SDK reads its own OTEL_* variables too: headers, sampler, resource, batches.

    Raises `ConfigurationError` when the library is not installed.
    """
    if settings.trace_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"--trace-endpoint needs OpenTelemetry ({error}): pip install 'ortserve[otel]', or leave it out"
        ) from None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": NAME}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.trace_endpoint)))
    return Tracing(provider)


def trace_of(traceparent: str) -> str | None:
    """The trace that a W3C `traceparent` header belongs to; None for one that is none."""
    match = TRACEPARENT.fullmatch(traceparent)
    return None if match is None else match[1]


class _Clock:
    """Monotonic seconds as nanoseconds since the epoch."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def wall_ns(self, monotonic_s: float) -> int:
        return self._offset_ns + int(monotonic_s * 1e9)


def _request_attributes(exchange: Exchange, operation: str) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": exchange.model,
        "http.request.method": "POST",
        "http.route": exchange.path,
        "http.response.status_code": exchange.status,
        "ortserve.request_id": exchange.request_id,
        "ortserve.outcome": exchange.outcome,
    }
    if exchange.error_code is not None:
        attributes["error.type"] = exchange.error_code
    if exchange.num_prompt_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = exchange.num_prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = exchange.num_output_tokens or 0
        attributes["ortserve.cached_tokens"] = exchange.num_cached_tokens or 0
    return attributes


def _phases(sequence: SequenceTimes) -> list[tuple[str, float, float, Attributes]]:
    """Name, begin and end on the monotonic clock, attributes."""
    usage, begin = sequence.usage, sequence.submitted
    row, first, end = (begin + seconds for seconds in (usage.queue_s, usage.time_to_first_token_s, usage.total_s))
    choice: Attributes = {"ortserve.choice": sequence.index}
    prefill: Attributes = {
        "ortserve.prompt_tokens": usage.num_prompt_tokens, "ortserve.cached_tokens": usage.num_cached_tokens,
    }  # fmt: skip
    decode: Attributes = {
        "ortserve.output_tokens": usage.num_output_tokens,
        "ortserve.accepted_draft_tokens": usage.num_accepted_tokens,
        "ortserve.preemptions": usage.num_preemptions,
    }
    return [
        ("queue", begin, row, choice),
        ("prefill", row, first, choice | prefill),
        ("decode", first, end, choice | decode),
    ]
