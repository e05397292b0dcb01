"""/admin/cache/...: what the prompt cache holds, and the operator's wishes about it. Checks no key."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.access.tenancy import salt_of
from ortserve.gateway.answers.cache import ClearedReply, EntriesReply, StatsReply, WarmedReply
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.pool import WorkPool
from ortserve.gateway.request_fields.admin import CLEAR, WARM
from ortserve.gateway.request_fields.queries import DEFAULT_ENTRIES, MAX_ENTRIES
from ortserve.gateway.routes.bodies import asked_model, json_response, read_request
from ortserve.gateway.schema.fields import Fields, check_range
from ortserve.gateway.served.warming import Whose, answer_of, read_warm, warm


@dataclass(frozen=True, slots=True)
class CacheRoute:
    """The endpoints of all prompt caches: `?model=NAME` says whose. `whose` tells the tenant of a body's key."""

    fleet: Fleet
    pool: WorkPool
    whose: Whose

    async def stats(self, request: Request) -> Response:
        """Counters since the start, and sizes now."""
        service = await asked_model(request, self.fleet)
        return json_response(StatsReply(service.driver.cache_stats()))

    async def entries(self, request: Request) -> Response:
        """What is kept, block by block; `?limit=N`."""
        text = request.query_params.get("limit", str(DEFAULT_ENTRIES))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        check_range("limit", "integer", limit, 0, MAX_ENTRIES)
        service = await asked_model(request, self.fleet)
        entries = await answer_of(service.driver.cache_entries())
        reply = EntriesReply(entries[:limit], len(entries))
        body = await self.pool.run(lambda: msgspec.json.encode(reply))
        return Response(body, media_type="application/json")

    async def clear(self, request: Request) -> Response:
        """Forget everything, or what `api_key` and `cache_salt` name."""
        key = refinement = None
        if exchange_of(request.scope).body:
            key, refinement = await read_request(request, CLEAR, read_clear, self.pool)
        salt = None
        if key is not None or refinement is not None:
            salt = salt_of(self.whose(key), refinement)
        service = await asked_model(request, self.fleet)
        return json_response(ClearedReply(await answer_of(service.driver.cache_clear(salt))))

    async def warm(self, request: Request) -> Response:
        """Compute a prefix and keep it."""
        service = await asked_model(request, self.fleet)
        wanted = await read_request(
            request,
            WARM,
            lambda fields: read_warm(fields, service.vocabulary, whose=self.whose),
            self.pool,
        )
        warmed = await warm(service, wanted)
        return json_response(WarmedReply(warmed.num_tokens, warmed.num_cached_tokens, warmed.num_pinned_tokens))


def read_clear(fields: Fields) -> tuple[str | None, str | None]:
    """`api_key` and `cache_salt`, whose prefixes are meant."""
    return fields.string("api_key"), fields.string("cache_salt")
