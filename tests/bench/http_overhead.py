"""Tokens per second through `ortserve serve`, with the load generator on the same cores, over the engine alone.

The server runs as a child process; the engine alone runs in this one. They take turns with the same prompts, lengths
and concurrency, and the same statistics: output tokens while every stream is running.

  python -m tests.bench.http_overhead FOLDER --json out.json
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from time import perf_counter, process_time

from ortserve.gateway.bench.calibrate import Calibration, Probe
from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.frames import Failure, Timeline
from ortserve.gateway.bench.load import LevelRun, LoadGenerator, Sample
from ortserve.gateway.bench.prompts import PromptSource
from ortserve.gateway.bench.statistics import LevelReport, summarize
from ortserve.gateway.bench.workload import Api, ClosedLoop, Workload, parse_target
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, Request, SamplingParams
from tests.bench.measurement import Goal, Server, finish, script_parser, serving, spread


@dataclass(slots=True)
class Running:
    """One request of the engine's closed loop."""

    worker: int
    start_s: float
    arrivals: list[float]


class EngineLoop:
    """The closed loop without HTTP: the outlet submits a worker's next request when its last one is done."""

    def __init__(self, driver: Driver, source: PromptSource, indices: Iterator[int]) -> None:
        self._driver = driver
        self._source = source
        self._indices = indices
        self._running: dict[str, Running] = {}
        self._samples: list[Sample] = []
        self._num_left = 0
        self._finished = threading.Event()

    def run(self, level: ClosedLoop) -> LevelRun:
        """Run one level to its end."""
        assert level.num_requests is not None
        self._samples, self._num_left = [], level.num_requests
        self._finished.clear()
        start, cpu = perf_counter(), process_time()
        for worker in range(level.concurrency):
            self._submit(worker)
        self._finished.wait()
        return LevelRun(level, tuple(self._samples), perf_counter() - start, process_time() - cpu)

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of the driver's `Outlet`."""
        now = perf_counter()
        for delta in deltas:
            running = self._running[delta.request_id]
            running.arrivals += [now] * len(delta.token_ids)
            if delta.finish is not None:
                del self._running[delta.request_id]
                self._samples.append(Sample(running.worker, _timeline(running, now, delta)))
                self._submit(running.worker)
        if not self._running:
            self._finished.set()

    def _submit(self, worker: int) -> None:
        if self._num_left == 0:
            return
        self._num_left -= 1
        index = next(self._indices)
        prompt = self._source.prompt(index)
        assert isinstance(prompt, list), "the server takes token ids"
        work = self._source.workload
        sampling = SamplingParams(
            temperature=work.temperature, seed=index, max_tokens=work.num_output_tokens, ignore_eos=True
        )
        self._running[str(index)] = Running(worker, perf_counter(), [])
        self._driver.submit(Request(str(index), tuple(prompt), sampling), self)


def _timeline(running: Running, end_s: float, delta: Delta) -> Timeline:
    usage = delta.usage
    return Timeline(
        start_s=running.start_s,
        sent_s=running.start_s,
        end_s=end_s,
        arrivals=tuple(running.arrivals),
        num_prompt_tokens=usage.num_prompt_tokens if usage else 0,
        num_output_tokens=usage.num_output_tokens if usage else 0,
        finish=str(delta.finish),
        failure=None if delta.error is None else Failure("engine", delta.error),
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """One turn of both sides at one concurrency."""

    concurrency: int
    http: LevelReport
    engine: LevelReport
    http_cpu_s: float  # server and load generator
    engine_cpu_s: float

    @property
    def cpu_ratio(self) -> float:
        """Processor time per request, engine over HTTP: what other work on the machine distorts least."""
        return self.engine_cpu_s / self.http_cpu_s

    @property
    def ratio(self) -> float:
        """HTTP over engine, output tokens per second at full concurrency."""
        return _speed(self.http) / _speed(self.engine)


def _speed(report: LevelReport) -> float:
    if report.failures or report.num_short:
        raise RuntimeError(f"not every request completed: {report.failures}, {report.num_short} short")
    assert report.steady_tokens_per_s is not None, "too few requests for a steady interval"
    return report.steady_tokens_per_s


async def calibrate(url: str, model: str, num_prompt_tokens: int, num_output_tokens: int) -> Calibration:
    """Prompts of token ids, as both sides take them."""
    target = parse_target(url, None)
    work = Workload(model, Api.COMPLETIONS, num_prompt_tokens, num_output_tokens, 0, 0.0, seed=11)
    with contextlib.closing(Client(target, 600.0)) as client:
        return await Probe(client, target, work).calibrate()


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--concurrency", default="8,16", help="default %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=192, help="default %(default)s")
    parser.add_argument("--output-tokens", type=int, default=128, help="default %(default)s: context 256 in the middle")
    parser.add_argument("--requests", type=int, default=2, help="per stream and turn (default %(default)s)")
    arguments = parser.parse_args()
    levels = [ClosedLoop(int(n), 0, int(n) * arguments.requests, None) for n in arguments.concurrency.split(",")]
    max_rows = max(level.concurrency for level in levels)
    max_context = arguments.prompt_tokens + arguments.output_tokens
    flags = ("--max-rows", str(max_rows), "--max-context", str(max_context), "--served-name", "bench")
    with serving(arguments.folder, *flags, limit_s=600) as server:
        calibration = asyncio.run(calibrate(server.url, "bench", arguments.prompt_tokens, arguments.output_tokens))
        indices = count()
        driver = open_driver(arguments.folder, EngineConfig(max_rows=max_rows, max_context=max_context))
        try:
            pairs = _take_turns(server, driver, calibration.source, indices, levels, arguments.rounds)
        finally:
            driver.close()
    goals = []
    for level in levels:
        own = [pair for pair in pairs if pair.concurrency == level.concurrency]
        http, engine = spread([_speed(pair.http) for pair in own]), spread([_speed(pair.engine) for pair in own])
        print(f"{level.concurrency} streams: HTTP {http}, engine {engine} tokens/s")
        print(f"  processor time, engine over HTTP: {spread([pair.cpu_ratio for pair in own])}")
        goals.append(Goal(f"{level.concurrency} streams", spread([pair.ratio for pair in own]), at_least=0.8))
    return finish(
        arguments, goals, {"pairs": [asdict(pair) for pair in pairs], "manifest": read_manifest(arguments.folder).name}
    )


def _take_turns(
    server: Server,
    driver: Driver,
    source: PromptSource,
    indices: Iterator[int],
    levels: Sequence[ClosedLoop],
    num_rounds: int,
) -> list[Pair]:
    generator = LoadGenerator(parse_target(server.url, None), source, 600.0)
    loop = EngineLoop(driver, source, indices)
    num_output = source.workload.num_output_tokens
    pairs: list[Pair] = []
    for _ in range(num_rounds):
        for level in levels:
            before = server.cpu_seconds()
            http = asyncio.run(generator.run(level))
            http_cpu = server.cpu_seconds() - before + http.client_cpu_s
            engine = loop.run(level)
            pairs.append(
                Pair(
                    concurrency=level.concurrency,
                    http=summarize(http, num_output_tokens=num_output),
                    engine=summarize(engine, num_output_tokens=num_output),
                    http_cpu_s=http_cpu,
                    engine_cpu_s=engine.client_cpu_s,
                )
            )
    return pairs


if __name__ == "__main__":
    sys.exit(main())
