"""`truncation: auto`: the newest items of a conversation that fit the context. Knows no tokenizer and no store."""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.gateway.errors import ApiError
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.items import Item
from ortserve.gateway.schema.responses import ResponseCall
from ortserve.gateway.served.service import ModelService

OVERFLOW = "context_length_exceeded"


async def fitting_chat(
    service: ModelService, call: ResponseCall, items: Sequence[Item], model: str, *, num_bytes: int
) -> ChatRequest:
    """The chat without its oldest items, as many as must go so that there is room for a reply.

    What a conversation begins with by way of system messages stays, and so does the last item. A tool's output goes
    with its call. Room means `max_output_tokens` but at most half of the context; a quarter when that is absent.
    Raises `ApiError` (400) when even the last item is too long.
    """
    limit = service.max_context - _room(service.max_context, call.echo.max_output_tokens)
    num_kept = _num_leading(items)
    fewest, most = 1, len(items) - num_kept - 1  # to drop

    async def without(num_dropped: int) -> ChatRequest:
        return await service.pool.run(lambda: call.with_items(without_oldest(items, num_kept, num_dropped), model))

    async def fits(num_dropped: int) -> bool:
        chat = await without(num_dropped)
        try:
            return await service.count_tokens(chat, num_body_bytes=num_bytes, param="input") <= limit
        except ApiError as error:
            if not is_overflow(error):
                raise
            return False

    while fewest < most:
        middle = (fewest + most) // 2
        if await fits(middle):
            most = middle
        else:
            fewest = middle + 1
    return await without(max(most, 0))


def without_oldest(items: Sequence[Item], num_kept: int, num_dropped: int) -> tuple[Item, ...]:
    """The items but `num_dropped` after the first `num_kept`, and but outputs whose calls are among those."""
    dropped = items[num_kept : num_kept + num_dropped]
    calls = {item.body.get("call_id") for item in dropped} - {None}
    rest = [item for item in items[num_kept + num_dropped :] if item.body.get("call_id") not in calls]
    return (*items[:num_kept], *rest)


def is_overflow(error: ApiError) -> bool:
    """Whether dropping items may help."""
    return error.problem.code == OVERFLOW


def _num_leading(items: Sequence[Item]) -> int:
    for place, item in enumerate(items):
        if item.body.get("role") not in ("system", "developer"):
            return place
    return len(items)


def _room(max_context: int, max_output_tokens: int | None) -> int:
    return max_context // 4 if max_output_tokens is None else min(max_output_tokens, max_context // 2)
