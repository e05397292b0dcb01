"""GET /metrics. Knows no metric."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.telemetry.metrics import Metrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Snapshot(Collector):
    """Metrics as they were: counts go on in the event loop while these are written out."""

    metrics: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        """Part of `Collector`."""
        return self.metrics


@dataclass(frozen=True, slots=True)
class MetricsRoute:
    """The endpoint a Prometheus server scrapes."""

    metrics: Metrics

    async def get(self, request: Request) -> Response:
        """All metrics, in the text format or OpenMetrics as the scraper asks."""
        is_open = "application/openmetrics-text" in request.headers.get("accept", "")
        # Chosen here: the library's choice fails on versions and escapings it does not know.
        encode = openmetrics.generate_latest if is_open else generate_latest
        body = await asyncio.to_thread(encode, Snapshot(tuple(self.metrics.collect())))
        return Response(body, media_type=openmetrics.CONTENT_TYPE_LATEST if is_open else TEXT)
