"""/admin/cache/...: what the prompt cache holds, and the operator's wishes about it. Checks no key."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ortserve.gateway.contract.admin import CLEAR, WARM
from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.routes.bodies import json_response, read_request
from ortserve.gateway.schema.fields import Fields, check_range
from ortserve.gateway.service import ModelService
from ortserve.gateway.tenancy import salt_of
from ortserve.gateway.warming import Whose, answer_of, read_warm, warm
from ortserve.plugins.api import CacheStats, Entry

DEFAULT_ENTRIES = 1000
MAX_ENTRIES = 1_000_000


class StatsReply(msgspec.Struct, frozen=True):
    """The answer to GET /admin/cache/stats."""

    stats: CacheStats
    object: str = "cache.stats"


class EntriesReply(msgspec.Struct, frozen=True):
    """The answer to GET /admin/cache/entries: the first of all `num_entries`, parents before children."""

    data: list[Entry]
    num_entries: int
    object: str = "list"


class ClearedReply(msgspec.Struct, frozen=True):
    """The answer to POST /admin/cache/clear."""

    num_blocks: int
    object: str = "cache.cleared"


class WarmedReply(msgspec.Struct, frozen=True):
    """The answer to POST /admin/cache/warm."""

    num_tokens: int
    num_cached_tokens: int
    num_pinned_tokens: int
    object: str = "cache.warmed"


@dataclass(frozen=True, slots=True)
class CacheRoute:
    """The endpoints of one model's prompt cache. `whose` is the tenant of the key that a body names, or none."""

    service: ModelService
    whose: Whose

    async def stats(self, _: Request) -> Response:
        """Counters since the start, and sizes now."""
        return json_response(StatsReply(self.service.driver.cache_stats()))

    async def entries(self, request: Request) -> Response:
        """What is kept, block by block; `?limit=N`."""
        text = request.query_params.get("limit", str(DEFAULT_ENTRIES))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        check_range("limit", "integer", limit, 0, MAX_ENTRIES)
        entries = await answer_of(self.service.driver.cache_entries())
        reply = EntriesReply(entries[:limit], len(entries))
        body = await self.service.pool.run(lambda: msgspec.json.encode(reply))
        return Response(body, media_type="application/json")

    async def clear(self, request: Request) -> Response:
        """Forget everything, or what `api_key` and `cache_salt` name."""
        key = refinement = None
        if exchange_of(request.scope).body:
            key, refinement = await read_request(request, CLEAR, read_clear, self.service.pool)
        salt = None
        if key is not None or refinement is not None:
            salt = salt_of(self.whose(key), refinement)
        return json_response(ClearedReply(await answer_of(self.service.driver.cache_clear(salt))))

    async def warm(self, request: Request) -> Response:
        """Compute a prefix and keep it."""
        service = self.service
        wanted = await read_request(
            request,
            WARM,
            lambda fields: read_warm(fields, service.vocabulary, whose=self.whose),
            service.pool,
        )
        warmed = await warm(service, wanted)
        return json_response(WarmedReply(warmed.num_tokens, warmed.num_cached_tokens, warmed.num_pinned_tokens))


def read_clear(fields: Fields) -> tuple[str | None, str | None]:
    """`api_key` and `cache_salt`, whose prefixes are meant."""
    return fields.string("api_key"), fields.string("cache_salt")
