"""Arrivals at several times the peak rate: goodput, the wait of those admitted, memory, how others are refused."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from itertools import count

from tests.bench.loaded.client import Caller, Shape, closed_loop, goodput, is_proper, open_loop, percentile
from tests.bench.loaded.report import Report
from tests.bench.loaded.server import Server, serving, watched

LATE_S = 0.25  # arrivals that the client sends later than that are no arrivals at that rate


async def overload(arguments: argparse.Namespace, report: Report) -> None:
    """The peak in closed loops, then Poisson arrivals."""
    # A small cache is full before the load begins: what grows afterwards is a leak.
    options = ("--max-waiting", str(arguments.waiting), "--prompt-cache-memory", "32MiB")
    with serving(arguments, *options) as server:
        peak = await _peak(arguments, report, server)
        rate = peak / arguments.output_tokens
        print(f"peak {peak:.0f} tokens/s, {rate:.2f} requests/s; now {arguments.factor:g} times as many", flush=True)
        await _overload(arguments, report, server, peak, rate)


async def _peak(arguments: argparse.Namespace, report: Report, server: Server) -> float:
    """Output tokens a second of the better of two closed loops: rows just full, and a queue behind them."""
    make, numbers, peak = Shape.of(arguments).body, count(10**8), 0.0
    for factor in (1, 2):
        begin = time.perf_counter()
        end = begin + arguments.settle_s + arguments.peak_s
        callers = [Caller(server.port) for _ in range(factor * arguments.rows)]
        async with watched(server, after_s=arguments.settle_s) as use:
            replies = await closed_loop(callers, make, end, numbers)
        found = goodput(replies, begin + arguments.settle_s, end)
        report.details[f"closed_loop_{factor}"] = {"tokens_per_s": found, "cores": use.cores()}
        peak = max(peak, found)
        if not found:
            first = replies[0] if replies else None
            raise RuntimeError(f"no reply ended whole in {arguments.peak_s:g} s; the first: {first}")
        for caller in callers:
            caller.close()
    return peak


async def _overload(arguments: argparse.Namespace, report: Report, server: Server, peak: float, rate: float) -> None:
    make, begin = Shape.of(arguments).body, time.perf_counter()
    async with watched(server, after_s=arguments.settle_s) as use:
        replies, late_s = await open_loop(server.port, rate * arguments.factor, arguments.duration, make, count())
    found = goodput(replies, begin + arguments.settle_s, begin + arguments.duration)
    admitted = [one for one in replies if one.status == 200]
    refused = [one for one in replies if one.status != 200]
    waits = [one.first_s - one.sent_s for one in admitted if one.first_s is not None]
    answers = [one.end_s - one.sent_s for one in refused]
    # What is admitted waits behind a full queue at the most: as long as the peak rate takes to serve it, and half more.
    bound = 1.5 * (arguments.waiting + arguments.rows) / rate + 1.0
    third = max(len(use.memory) // 3, 1)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    report.details |= {
        "peak_tokens_per_s": peak,
        "goodput_tokens_per_s": found,
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
    report.goal("goodput over peak", found / peak, at_least=0.9)
    report.goal("p99 of the admitted's time to first token, s", percentile(waits, 0.99), at_most=bound)
    growth = max(use.memory[-third:]) / max(use.memory[:third])
    report.goal("memory of the last third over the first", growth, at_most=1.05)
    report.goal("refusals that are no proper 429 or 503", sum(not is_proper(one) for one in refused), at_most=0)
    report.goal("admitted and not answered whole", sum(not one.is_whole for one in admitted), at_most=0)
    report.goal("p99 of how late the client sent, s", percentile(late_s, 0.99), at_most=LATE_S)
