"""Waiting for a whole reply while its client is still there. Knows no endpoint."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.http.watch import Patience, Watch
from ortserve.gateway.replies.generation import Generation, WholeChoice, collect

Result = TypeVar("Result")

CLIENT_CLOSED = 499  # nginx's word for it; only the access log sees it


async def wait_for_choices(request: Request, generation: Generation, patience: Patience) -> list[WholeChoice] | None:
    """All choices; None when the client has left, which cancels them."""
    return await wait_for_reply(request, generation, collect(generation), patience)


async def wait_for_reply(
    request: Request, generation: Generation, work: Coroutine[object, object, Result], patience: Patience
) -> Result | None:
    """What `work` makes of a generation; None when the client has left, which cancels both."""
    try:
        return await wait_while_connected(request, work, patience)
    finally:
        generation.close()
        exchange_of(request.scope).note(generation)


async def wait_while_connected(
    request: Request, work: Coroutine[object, object, Result], patience: Patience
) -> Result | None:
    """The result of `work`; None when the client has left, which cancels it."""
    result = None
    async with Watch(request.receive, patience=patience) as watch:
        result = await work
    if watch.reason is not None:
        exchange_of(request.scope).outcome = watch.reason
        return None
    return result
