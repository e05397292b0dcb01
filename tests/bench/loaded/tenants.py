"""The time to first token of one tenant, alone and beside another that floods."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

from tests.bench.loaded.client import Caller, Shape, closed_loop, percentile
from tests.bench.loaded.report import Report
from tests.bench.loaded.server import serving, watched

NAMES = ("quiet", "flood")
WARM = 3  # requests that are not counted
MIN_SAMPLES = 20  # however long they take


async def tenants(arguments: argparse.Namespace, report: Report) -> None:
    """One asks, request after request; the other keeps several times as many going as there are rows."""
    numbers = count()
    flood_shape = Shape.of(arguments)
    quiet_shape = replace(flood_shape, prompt_tokens=arguments.quiet_prompt_tokens or arguments.prompt_tokens)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.jsonl"
        lines = [{"name": name, "hash": f"sha256:{hashlib.sha256(_key(name).encode()).hexdigest()}"} for name in NAMES]
        keys.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with serving(arguments, "--api-keys", str(keys)) as server:
            quiet = Caller(server.port, _key("quiet"))

            async def measure() -> list[float]:
                """Until there are enough of them, or `measure_s` has passed."""
                found: list[float] = []
                end = time.perf_counter() + arguments.measure_s
                while len(found) < WARM + arguments.samples and (
                    time.perf_counter() < end or len(found) < WARM + MIN_SAMPLES
                ):
                    reply = await quiet.ask(quiet_shape.body(next(numbers)))
                    if reply.first_s is None or not reply.is_whole:
                        raise RuntimeError(f"the quiet tenant was not answered: {reply}")
                    found.append(reply.first_s - reply.sent_s)
                    await asyncio.sleep(0.05)
                return found[WARM:]

            alone = await measure()
            callers = [Caller(server.port, _key("flood")) for _ in range(arguments.factor_flood * arguments.rows)]
            flood = asyncio.create_task(closed_loop(callers, flood_shape.body, float("inf"), numbers))
            await asyncio.sleep(arguments.settle_s)
            async with watched(server) as use:
                beside = await measure()
            flood.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flood
    report.details |= {
        "alone_s": {"p50": median(alone), "p95": percentile(alone, 0.95), "count": len(alone)},
        "beside_a_flood_s": {"p50": median(beside), "p95": percentile(beside, 0.95), "count": len(beside)},
        "cores": use.cores(),
    }
    report.goal("time to first token beside a flood over alone, p50", median(beside) / median(alone), at_most=2.0)
    ratio = percentile(beside, 0.95) / percentile(alone, 0.95)
    report.goal("the same, p95", ratio, at_most=2.0)


def _key(name: str) -> str:
    return f"sk-{name}"
