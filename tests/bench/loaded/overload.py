"""Arrivals at several times the peak rate: goodput, the wait of those admitted, memory, how others are refused."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from tests.bench.loaded.client import Caller, Reply, Shape, closed_loop, goodput, is_proper, open_loop, percentile
from tests.bench.loaded.occupancy import occupancy
from tests.bench.loaded.peak import find_peak
from tests.bench.loaded.report import Report
from tests.bench.loaded.server import Server, serving, watched

LATE_S = 0.25  # arrivals that the client sends later than that are no arrivals at that rate
SETTLING = 0.2  # of a search's loop: what it finds then does not count
AGAIN = 1.2  # offered over the most so far once more, after the overload


async def overload(arguments: argparse.Namespace, report: Report) -> None:
    """The peak, then Poisson arrivals at several times its rate, then the peak once more."""
    # A small cache is full before the load begins: what grows afterwards is a leak.
    options = ("--max-waiting", str(arguments.waiting), "--prompt-cache-memory", "32MiB")
    with serving(arguments, *options) as server:
        search = Search(arguments, report, server)
        peak = await find_peak(search.closed, search.offer, (1, 2))
        rate = peak / arguments.output_tokens
        print(f"peak {peak:.0f} tokens/s, {rate:.2f} requests/s; now {arguments.factor:g} times as many", flush=True)
        found = await _overload(arguments, report, server, rate)
        # A machine that has become faster meanwhile must not look like a server that likes to be overloaded.
        again = await search.offer(AGAIN * max(peak, found))
    report.details |= {"peak_tokens_per_s": max(peak, again), "peak_before_tokens_per_s": peak}
    report.goal("goodput over peak", found / max(peak, again), at_least=0.9)


class Search:
    """Loops of `peak_s` seconds each, and what each of them found, in the report."""

    def __init__(self, arguments: argparse.Namespace, report: Report, server: Server) -> None:
        self._arguments, self._report, self._server = arguments, report, server
        self._make, self._numbers = Shape.of(arguments).body, count(10**8)

    async def closed(self, width: int) -> float:
        """Output tokens a second for `width` times as many callers as rows.

        Raises `RuntimeError` where none is answered.
        """
        callers = [Caller(self._server.port) for _ in range(width * self._arguments.rows)]
        replies, loop = await self._run(lambda end_s: closed_loop(callers, self._make, end_s, self._numbers))
        for caller in callers:
            caller.close()
        self._report.details[f"closed_loop_{width}"] = loop
        if not loop["tokens_per_s"]:
            first = replies[0] if replies else None
            raise RuntimeError(f"no reply ended whole in {self._arguments.peak_s:g} s; the first: {first}")
        return float(loop["tokens_per_s"])

    async def offer(self, tokens_per_s: float) -> float:
        """Output tokens a second where requests for so many arrive; what the queue cannot hold is refused."""
        rate, seconds = tokens_per_s / self._arguments.output_tokens, self._arguments.peak_s
        late_s: list[float] = []

        async def run(_: float) -> list[Reply]:
            replies, late = await open_loop(self._server.port, rate, seconds, self._make, self._numbers)
            late_s.extend(late)
            return replies

        replies, loop = await self._run(run)
        loop |= {
            "offered_tokens_per_s": tokens_per_s,
            "statuses": Counter(str(one.status) for one in replies),
            "client_late_p99_s": percentile(late_s, 0.99),
        }
        self._report.details.setdefault("open_loops", []).append(loop)
        return float(loop["tokens_per_s"])

    async def _run(self, load: Callable[[float], Awaitable[list[Reply]]]) -> tuple[list[Reply], dict[str, Any]]:
        begin = time.perf_counter()
        counted, end = begin + SETTLING * self._arguments.peak_s, begin + self._arguments.peak_s
        async with watched(self._server, after_s=counted - begin) as use:
            inside = asyncio.create_task(occupancy(self._server.port, counted, end))
            replies = await load(end)
        found = {"tokens_per_s": goodput(replies, counted, end), "cores": use.cores(), **await inside}
        print(f"{found['tokens_per_s']:.0f} tokens/s, {found['rows_per_step']:.2f} rows a step", flush=True)
        return replies, found


async def _overload(arguments: argparse.Namespace, report: Report, server: Server, rate: float) -> float:
    """Output tokens a second at `factor` times `rate` requests a second; all else is judged here."""
    make, begin = Shape.of(arguments).body, time.perf_counter()
    end = begin + arguments.duration
    async with watched(server, after_s=arguments.settle_s) as use:
        inside = asyncio.create_task(occupancy(server.port, begin + arguments.settle_s, end))
        replies, late_s = await open_loop(server.port, rate * arguments.factor, arguments.duration, make, count())
    found = goodput(replies, begin + arguments.settle_s, end)
    admitted = [one for one in replies if one.status == 200]
    refused = [one for one in replies if one.status != 200]
    waits = [one.first_s - one.sent_s for one in admitted if one.first_s is not None]
    answers = [one.end_s - one.sent_s for one in refused]
    # What is admitted waits behind a full queue at the most: as long as the peak rate takes to serve it, and half more.
    bound = 1.5 * (arguments.waiting + arguments.rows) / rate + 1.0
    third = max(len(use.memory) // 3, 1)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    report.details |= {
        "goodput_tokens_per_s": found,
        **await inside,
        "offered_requests_per_s": rate * arguments.factor,
        "refused_requests_per_s": len(refused) / arguments.duration,
        "cores": use.cores(),
        "statuses": Counter(str(one.status) for one in replies),
        "ttft_s": {name: percentile(waits, share) for name, share in shares.items()},
        "refusal_s": {name: percentile(answers, share) for name, share in shares.items()},
        "client_late_s": {name: percentile(late_s, share) for name, share in shares.items()},
        "memory_mib": [round(one / 2**20) for one in use.memory[:: max(len(use.memory) // 20, 1)]],
        "retry_after_s": Counter(one.headers.get("retry-after") for one in refused),
        "failures": Counter(one.failure for one in replies if one.failure is not None),
    }
    report.goal("p99 of the admitted's time to first token, s", percentile(waits, 0.99), at_most=bound)
    growth = max(use.memory[-third:]) / max(use.memory[:third])
    report.goal("memory of the last third over the first", growth, at_most=1.05)
    report.goal("refusals that are no proper 429 or 503", sum(not is_proper(one) for one in refused), at_most=0)
    report.goal("admitted and not answered whole", sum(not one.is_whole for one in admitted), at_most=0)
    report.goal("p99 of how late the client sent, s", percentile(late_s, 0.99), at_most=LATE_S)
    return found
