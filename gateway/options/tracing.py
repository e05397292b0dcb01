"""Options of where spans are sent. Knows no span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ortserve.gateway.configuration.kinds import TEXT
from ortserve.gateway.configuration.option import option


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Tracing."""

    SECTION: ClassVar[str] = "tracing"

    trace_endpoint: str | None = option(
        None, TEXT, "send OpenTelemetry spans there, OTLP over HTTP: http://collector:4318/v1/traces", metavar="URL"
    )
