"""GET /health and GET /. Know no request."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.service import ModelService


@dataclass(frozen=True, slots=True)
class HealthRoute:
    """Whether this server can take requests."""

    service: ModelService

    async def get(self, _: Request) -> Response:
        """200 while the engine runs; 503 when it drains or has failed."""
        driver = self.service.driver
        if not driver.healthy:
            body = msgspec.json.encode({"status": "unavailable", "model": self.service.name})
            return Response(body, 503, {"retry-after": "5"}, "application/json")
        stats = driver.stats()
        body = msgspec.json.encode(
            {
                "status": "ok",
                "model": self.service.name,
                "running": stats.num_running,
                "waiting": stats.num_waiting,
                "swapped": stats.num_swapped,
            }
        )
        return Response(body, media_type="application/json")
