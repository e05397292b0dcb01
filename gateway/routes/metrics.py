"""GET /metrics. Knows no metric."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.metrics import Metrics


@dataclass(frozen=True, slots=True)
class MetricsRoute:
    """The endpoint a Prometheus server scrapes."""

    metrics: Metrics

    async def get(self, request: Request) -> Response:
        """All metrics, in the text format or OpenMetrics as the scraper asks."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.metrics.registry), media_type=content_type)
