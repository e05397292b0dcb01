"""GET /health and GET /. Know no request."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.catalog import Catalog


@dataclass(frozen=True, slots=True)
class HealthRoute:
    """Whether this server can take requests."""

    catalog: Catalog

    async def get(self, _: Request) -> Response:
        """200 while all models run; 503 when one drains or has failed."""
        catalog = self.catalog
        model = catalog.services[0].name
        if not catalog.healthy:
            body = msgspec.json.encode({"status": "unavailable", "model": model})
            return Response(body, 503, {"retry-after": "5"}, "application/json")
        state: dict[str, object] = {"status": "ok", "model": model}
        if catalog.decoder is not None:
            stats = catalog.decoder.driver.stats()
            state |= {"running": stats.num_running, "waiting": stats.num_waiting, "swapped": stats.num_swapped}
        if catalog.encoders:
            state["encoders"] = [
                {"model": service.name, "waiting": service.driver.stats().num_waiting} for service in catalog.encoders
            ]
        return Response(msgspec.json.encode(state), media_type="application/json")
