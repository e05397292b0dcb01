"""The answers of /admin/cache. Knows no cache."""

from __future__ import annotations

import msgspec

from ortserve.plugins.api import CacheStats, Entry


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
