"""GET /metrics. Knows no metric."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.metrics import Metrics


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
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except ValueError:  # a version that is no number
            encode, content_type = choose_encoder("")
        body = await asyncio.to_thread(encode, Snapshot(tuple(self.metrics.collect())))
        return Response(body, media_type=content_type)
