"""Many streams beside many idle connections, and streams over a SIGTERM: none may fail, none may lose a token."""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from ortserve.gateway.bench.http1 import ProtocolError
from tests.bench.loaded.client import Caller, Reply, Shape
from tests.bench.loaded.report import Report
from tests.bench.loaded.server import Server, serving, watched

DRAIN_S = 240

Then = Callable[[Server, Sequence[asyncio.Task[Reply]]], Awaitable[None]]


async def streams(arguments: argparse.Namespace, report: Report) -> None:
    """Twice as many streams as asked for, in two rounds; the second one over the end of the server."""
    shape, number = Shape.of(arguments), arguments.streams
    with serving(arguments, "--max-waiting", str(4 * number), "--drain", str(DRAIN_S)) as server:
        idle = [Caller(server.port) for _ in range(arguments.idle)]
        for caller in idle:
            await caller.get("/health/live")
        begin = time.perf_counter()
        async with watched(server) as use:
            replies = await asyncio.gather(*(Caller(server.port).ask(shape.body(one)) for one in range(number)))
        seconds = time.perf_counter() - begin
        num_lost = 0
        for caller in idle:
            connection = caller.connection
            try:
                await caller.get("/health/live")
            except (OSError, ProtocolError):
                num_lost += 1
            num_lost += caller.connection is not connection
        last = [asyncio.create_task(Caller(server.port).ask(shape.body(number + one))) for one in range(number)]
        await _admitted(server, last)
        report.details["ended_before_the_signal"] = sum(one.done() for one in last)
        server.process.send_signal(signal.SIGTERM)
        drained = await asyncio.gather(*last)
        code = await asyncio.to_thread(server.process.wait, 60)
    report.details |= {
        "seconds": seconds,
        "tokens_per_s": sum(one.num_tokens for one in replies) / seconds,
        "cores": use.cores(),
    }
    for name, found in (("failures", replies), ("drain_failures", drained)):
        bad = [one for one in found if not one.is_whole or one.num_tokens != arguments.output_tokens]
        report.details[name] = Counter(one.failure or one.body[:200].decode() for one in bad)
        what = "failed or short" if name == "failures" else "failed or short over a SIGTERM"
        report.goal(f"of {number} streams, {what}", len(bad), at_most=0)
    report.goal(f"of {arguments.idle} idle connections, lost", num_lost, at_most=0)
    report.goal("exit status of the server", code, at_most=0)


async def drain(arguments: argparse.Namespace, report: Report) -> None:
    """The same greedy requests undisturbed and while the server ends: in deterministic mode the texts are equal."""
    count, shape = 2 * arguments.rows, Shape.of(arguments)
    options = ("--deterministic", "--drain", str(DRAIN_S))

    async def ask_all(server: Server, then: Then) -> list[Reply]:
        tasks = [asyncio.create_task(Caller(server.port).ask(shape.body(number))) for number in range(count)]
        await then(server, tasks)
        return list(await asyncio.gather(*tasks))

    async def nothing(_: Server, __: Sequence[asyncio.Task[Reply]]) -> None:
        return

    with serving(arguments, *options) as server:
        expected = await ask_all(server, nothing)
    late: list[Reply] = []
    with serving(arguments, *options) as server:

        async def stop(server: Server, tasks: Sequence[asyncio.Task[Reply]]) -> None:
            await _admitted(server, tasks)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            late.append(await Caller(server.port).ask(shape.body(count)))

        found = await ask_all(server, stop)
        code = await asyncio.to_thread(server.process.wait, 60)
    differing = [
        number
        for number, (one, other) in enumerate(zip(expected, found, strict=True))
        if not other.is_whole or other.text != one.text or other.num_tokens != arguments.output_tokens
    ]
    report.details |= {"late": late[0].failure or late[0].status, "failures": [found[one].failure for one in differing]}
    report.goal(f"of {count} admitted streams, those that lost a token", len(differing), at_most=0)
    report.goal("exit status of the server", code, at_most=0)
    report.goal("requests after the signal that were admitted", sum(one.status == 200 for one in late), at_most=0)


async def _admitted(server: Server, tasks: Sequence[asyncio.Task[Reply]]) -> None:
    """Until all of them have been let in: some run, the others wait, and some may have ended."""
    metrics = Caller(server.port)
    num_inside = 0.0
    while num_inside + sum(task.done() for task in tasks) < len(tasks):
        text = (await metrics.get("/metrics")).decode()
        states = [line for line in text.splitlines() if line.startswith("ortserve_sequences{")]
        num_inside = sum(float(line.split()[-1]) for line in states)
    await asyncio.sleep(0.1)  # the count is as of a moment ago
