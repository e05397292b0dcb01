"""The body of a request as it arrives: whole, within a size and in time. Knows no route."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive

from ortserve.gateway.errors import ApiError, Problem

MIN_BYTES_PER_S = 500.0  # a body that comes more slowly than that only occupies the server


class SlowBodyError(ApiError):
    """The body of a request takes too long."""


def in_time(receive: Receive, body_s: float) -> Receive:
    """`receive` until the body has come, which has `body_s` seconds and one more for each `MIN_BYTES_PER_S` bytes.

    Then raises `SlowBodyError` (408). After the body, only a disconnect is waited for, and for that there is no limit.
    """
    deadline = time.monotonic() + body_s
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal deadline, is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await receive()
        except TimeoutError:
            is_whole = True
            raise SlowBodyError(too_slow(body_s)) from None
        deadline += len(message.get("body", b"")) / MIN_BYTES_PER_S
        is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return receive_in_time


async def read_body(receive: Receive, limit: int, body_s: float) -> bytes | None:
    """The whole body, None when the client has gone. Past the limit the rest is dropped, and the result is longer.

    It has as much time as `in_time` gives. Raises `SlowBodyError` (408).
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(body_s) as bound:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunk = message.get("body", b"")
                if chunk and size <= limit:
                    chunks.append(chunk)
                    size += len(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
                bound.reschedule((bound.when() or 0.0) + len(chunk) / MIN_BYTES_PER_S)
    except TimeoutError:
        raise SlowBodyError(too_slow(body_s)) from None


def too_slow(body_s: float) -> Problem:
    """A 408 naming the limit. The connection ends: what would come next is the rest of the body."""
    message = f"The request body took too long: {body_s:g} seconds, and one for each {MIN_BYTES_PER_S:.0f} bytes."
    return Problem(408, message, code="request_timeout", headers={"connection": "close"})


def too_large(limit: int) -> Problem:
    """A 413 naming the limit."""
    return Problem(413, f"Request body too large: at most {limit} bytes are accepted.", code="request_too_large")
