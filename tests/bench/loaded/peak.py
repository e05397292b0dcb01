"""The most that a server carries, by closed loops and by arrivals at rising rates. Knows no server and no clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

# Offered over the best so far. Below 1 nothing can be found that is more than it.
FACTORS = (1.0, 1.2, 1.5)
MAX_OFFERS = 5
GAIN = 1.03  # an offer that finds less than this times the best is the last one: loops differ by as much


async def find_peak(
    closed: Callable[[int], Awaitable[float]], offer: Callable[[float], Awaitable[float]], widths: tuple[int, ...]
) -> float:
    """The largest goodput of any loop, in tokens a second.

    `closed(width)` lets so many callers ask one after another, whose pauses between reply and request leave rows idle
    unless there are enough of them; `offer(rate)` has requests for `rate` tokens a second arrive, whoever is served.
    Where the best was too low, offers go on until they find no more, or there have been `MAX_OFFERS`.
    """
    best = 0.0
    for width in widths:
        best = max(best, await closed(width))
    for number in range(MAX_OFFERS):
        found = await offer(best * FACTORS[min(number, len(FACTORS) - 1)])
        is_more = found > GAIN * best
        best = max(best, found)
        if number >= len(FACTORS) - 1 and not is_more:
            break
    return best
