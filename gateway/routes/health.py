"""GET /health, /health/live, /health/ready and GET /. Tell strangers only whether."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.catalog import Catalog
from ortserve.gateway.exchange import exchange_of


@dataclass(frozen=True, slots=True)
class HealthRoute:
    """Whether this server can take requests."""

    catalog: Catalog

    async def live(self, _: Request) -> Response:
        """200 unless only a restart helps: 503 when an engine's thread has died."""
        return _status("failed", 503) if self.catalog.has_failed else _status("ok", 200)

    async def ready(self, _: Request) -> Response:
        """200 while requests are taken; 503 when a model drains or has failed."""
        return _status("ok", 200) if self.catalog.healthy else _status("unavailable", 503)

    async def get(self, request: Request) -> Response:
        """As `ready`, and what runs for those whose key is known."""
        if not exchange_of(request.scope).is_known:
            return await self.ready(request)
        catalog = self.catalog
        model = catalog.services[0].name
        if not catalog.healthy:
            body = msgspec.json.encode({"status": "unavailable", "model": model})
            return Response(body, 503, {"retry-after": "5"}, "application/json")
        state: dict[str, object] = {"status": "ok", "model": model}
        if catalog.decoder is not None:
            stats = catalog.decoder.driver.stats()
            state |= {"running": stats.num_running, "waiting": stats.num_waiting, "swapped": stats.num_swapped}
            workers = catalog.decoder.driver.workers()
            if workers:
                state["workers"] = [
                    {
                        "worker": one.name,
                        "status": "failed" if one.pid is None else "ok",
                        "requests": one.num_requests,
                        "restarts": one.num_restarts,
                    }
                    for one in workers
                ]
        if catalog.encoders:
            state["encoders"] = [
                {"model": service.name, "waiting": service.driver.stats().num_waiting} for service in catalog.encoders
            ]
        return Response(msgspec.json.encode(state), media_type="application/json")


def _status(word: str, status: int) -> Response:
    headers = {} if status == 200 else {"retry-after": "5"}
    return Response(msgspec.json.encode({"status": word}), status, headers, "application/json")
