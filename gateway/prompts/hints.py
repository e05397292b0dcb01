"""A request's wish and its caller, as what the engine's prompt cache is told. Knows no wire format and no cache."""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.gateway.access.tenancy import salt_of
from ortserve.gateway.schema.caching import CacheWish
from ortserve.plugins.api import Breakpoint, CacheMode
from ortserve.runtime.request import CacheHints


def cache_hints(
    wish: CacheWish, tenant: bytes, *, num_prompt_tokens: int, breakpoints: Sequence[Breakpoint] = ()
) -> CacheHints:
    """The hints of one prompt.

    As at OpenAI, `explicit` without a breakpoint does not use the cache at all, and a lifetime in the options also
    holds for the implicit breakpoint at the prompt's end. `prompt_cache_key` is affinity only: it may bring related
    requests together, but it neither lets tenants share nor keeps one tenant's requests from sharing.
    """
    salt = salt_of(tenant, wish.salt)
    if wish.mode is CacheMode.OFF or (wish.mode is CacheMode.EXPLICIT and not breakpoints):
        return CacheHints(salt, CacheMode.OFF, (), wish.affinity, wish.is_durable)
    points = tuple(breakpoints)
    if wish.mode is CacheMode.AUTO and wish.ttl_s is not None:
        points = (*points, Breakpoint(num_prompt_tokens, wish.ttl_s))
    return CacheHints(salt, wish.mode, points, wish.affinity, wish.is_durable)
