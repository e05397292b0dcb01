"""Puts a closed or an open loop of requests on the server and collects their timelines. Knows no statistics.

Closed: each worker sends its next request when its last one is done. Open: requests are sent when a Poisson process
says so, whether or not the server keeps up, and their latency counts from the moment they were due.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter, process_time

import numpy as np

from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.frames import Timeline
from ortserve.gateway.bench.prompts import PromptSource
from ortserve.gateway.bench.workload import Api, ClosedLoop, Level, OpenLoop, Target

_PAUSE_AFTER_FAILURE_S = 0.1  # a server that refuses at once must not be stormed


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured request and the worker that sent it (open loop: its place in the schedule)."""

    worker: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class LevelRun:
    """The measured requests of one level, in order of their end, and what the client itself used meanwhile."""

    level: Level
    samples: tuple[Sample, ...]
    wall_s: float
    client_cpu_s: float  # processor time of this process


class LoadGenerator:
    """Runs levels one after another; no prompt is used twice."""

    def __init__(self, target: Target, source: PromptSource, timeout_s: float) -> None:
        self._target = target
        self._source = source
        self._timeout_s = timeout_s
        self._path = "/v1/chat/completions" if source.workload.api is Api.CHAT else "/v1/completions"
        self._indices: Iterator[int] = count()

    async def run(self, level: Level) -> LevelRun:
        """Run one level to its end."""
        start, cpu = perf_counter(), process_time()
        match level:
            case ClosedLoop():
                samples = await self._closed(level)
            case OpenLoop():
                samples = await self._open(level)
        return LevelRun(level, tuple(samples), perf_counter() - start, process_time() - cpu)

    async def _closed(self, level: ClosedLoop) -> list[Sample]:
        samples: list[Sample] = []
        # All workers warm up before any is measured; those that are first keep the load up meanwhile.
        window = _Window(level)
        async with asyncio.TaskGroup() as group:
            for worker in range(level.concurrency):
                group.create_task(self._work(worker, window, samples))
        return samples

    async def _work(self, worker: int, window: _Window, samples: list[Sample]) -> None:
        with contextlib.closing(Client(self._target, self._timeout_s)) as client:
            for number in count():
                warming = window.warming(number)
                if not warming and not window.take():
                    return
                timeline = await client.stream(self._path, self._source.body(next(self._indices)))
                if timeline.failure is not None:
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
                if not warming:
                    samples.append(Sample(worker, timeline))
                elif number + 1 == window.level.num_warmup:
                    window.num_cold -= 1

    async def _open(self, level: OpenLoop) -> list[Sample]:
        samples: list[Sample] = []
        idle: list[Client] = []
        start = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for number, offset in enumerate(arrival_offsets(level, self._source.workload.seed)):
                    due = start + offset
                    if (wait := due - perf_counter()) > 0:
                        await asyncio.sleep(wait)
                    group.create_task(self._send(number, due, level.num_warmup, idle, samples))
        finally:
            for client in idle:
                client.close()
        return samples

    async def _send(
        self, number: int, due_s: float, num_warmup: int, idle: list[Client], samples: list[Sample]
    ) -> None:
        client = idle.pop() if idle else Client(self._target, self._timeout_s)
        try:
            timeline = await client.stream(self._path, self._source.body(next(self._indices)), due_s)
        except asyncio.CancelledError:
            client.close()
            raise
        idle.append(client)
        if number >= num_warmup:
            samples.append(Sample(number, timeline))


class _Window:
    """When a closed loop's requests count: after every worker is warm, until the count or the time is reached."""

    def __init__(self, level: ClosedLoop) -> None:
        self.level = level
        self.num_cold = level.concurrency if level.num_warmup else 0
        self._num_taken = 0
        self._end_s: float | None = None

    def warming(self, number: int) -> bool:
        """Whether a worker's request `number` is sent only to warm up or to keep the load while others do."""
        return number < self.level.num_warmup or self.num_cold > 0

    def take(self) -> bool:
        """Claim the next measured request; False when there are enough."""
        if self.level.num_requests is not None:
            self._num_taken += 1
            return self._num_taken <= self.level.num_requests
        assert self.level.duration_s is not None
        now = perf_counter()
        if self._end_s is None:
            self._end_s = now + self.level.duration_s
        return now < self._end_s


def arrival_offsets(level: OpenLoop, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: gaps are exponential with mean 1 / rate.

    Ends after the warm-up and `num_requests`, or when `duration_s` has passed since the first measured arrival.
    """
    generator = np.random.default_rng([seed, 1])
    offset = 0.0
    first: float | None = None
    for number in count():
        if level.num_requests is not None and number >= level.num_warmup + level.num_requests:
            return
        if number >= level.num_warmup:
            first = offset if first is None else first
            if level.duration_s is not None and offset - first > level.duration_s:
                return
        yield offset
        offset += float(generator.exponential(1 / level.rate))
