"""What it costs that an engine is in a process of its own: time from a step to its outlet, processor time, throughput.

`steps`: the same synthetic model runs in this process and in another one, in turns. Paced: a step every few
milliseconds, as a real model has it; each delta carries the time at which its step was done, and both processes read
one clock. Free: steps as fast as they come, which shows what the crossing takes from the engine.

`tokens`: engines whose steps cost nothing (`null_steps`), in one process and in two behind a `Balancer`, 64 rows each.
Processor time per token of the process that receives them all, and of those that send; the step itself, measured with
the engine in this process, is part of the latter.

  python -m tests.bench.engine_processes --json out.json
  PYTHONPATH=BEFORE/.types python -m tests.bench.engine_processes --parts tokens   # of another checkout
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import clock_gettime, monotonic_ns, perf_counter, process_time, sleep
from typing import Any

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, Request, SamplingParams
from ortserve.runtime.testing import write_synthetic_model
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.remote import RemoteDriver
from ortserve.runtime.workers.restarts import Restarts
from tests.bench import null_steps
from tests.bench.measurement import Goal, finish, script_parser, spread

PACE_S = 0.005
NUM_STEPS = {"paced": 200, "free": 600}
ROWS = (1, 16, 64)
HERE, THERE = "in process", "of its own"
PARTS = ("steps", "tokens")
NULL_ROWS = 64
NULL_TOKENS = {"open_null": 600, "open_null_paced": 200}  # of each request


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Times are seconds."""

    latency_s: float  # from the end of a step to its outlet, median
    late_s: float  # the same, 99th percentile
    cpu_s: float  # of both processes, per step
    steps_per_s: float


class Clocked:
    """An outlet that compares what deltas carry with the time now; it is called once per step."""

    def __init__(self, num_requests: int) -> None:
        self.latencies_s: list[float] = []
        self.num_left = num_requests
        self.done = threading.Event()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        now = monotonic_ns()
        stamps = [delta.token_ids[0] for delta in deltas if delta.token_ids]
        if stamps:
            self.latencies_s.append((now - stamps[0]) / 1e9)
        self.num_left -= sum(delta.finish is not None for delta in deltas)
        if self.num_left == 0:
            self.done.set()


def open_paced(folder: Path, config: EngineConfig) -> Driver:
    """A driver whose steps take at least `PACE_S` and whose tokens are times."""
    return _stamping(open_driver(folder, config), PACE_S)


def open_free(folder: Path, config: EngineConfig) -> Driver:
    """The same without a pace."""
    return _stamping(open_driver(folder, config), 0.0)


def _stamping(driver: Driver, pace_s: float) -> Driver:
    step = driver._engine.step

    def stamped() -> list[Delta]:
        begun = perf_counter()
        deltas = step()
        if pace_s:
            sleep(max(0.0, pace_s - (perf_counter() - begun)))
        now = (monotonic_ns(),)
        return [Delta(one.request_id, now if one.token_ids else (), (), one.finish, one.usage) for one in deltas]

    driver._engine.step = stamped  # type: ignore[method-assign]
    return driver


@contextmanager
def opened(where: str, kind: str, folder: Path, config: EngineConfig) -> Iterator[tuple[EngineDriver, int | None]]:
    """A driver, and the id of its process if it has one."""
    if where == HERE:
        own = {"paced": open_paced, "free": open_free}[kind](folder, config)
        yield own, None
        own.close()
        return
    spec = WorkerSpec("cpu-0", folder, read_manifest(folder), config, f"tests.bench.engine_processes:open_{kind}")
    remote = RemoteDriver(spec)
    remote.started.result()
    yield remote, remote.workers()[0].pid
    remote.close()


def run(driver: EngineDriver, pid: int | None, num_rows: int, num_steps: int) -> Figures:
    """So many rows for so many steps."""
    outlet = Clocked(num_rows)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=num_steps)
    num_before, cpu_before, began = driver.stats().num_steps, process_time() + _cpu_s(pid), perf_counter()
    for number in range(num_rows):
        driver.submit(Request(f"r{number}", (1 + number, 2), sampling), outlet)
    assert outlet.done.wait(120)
    elapsed = perf_counter() - began
    cpu_s = process_time() + _cpu_s(pid) - cpu_before
    steps = driver.stats().num_steps - num_before
    latencies = outlet.latencies_s[10:]
    return Figures(median(latencies), quantiles(latencies, n=100)[-1], cpu_s / steps, steps / elapsed)


def _cpu_s(pid: int | None) -> float:
    """Processor time of another process."""
    return (
        0.0 if pid is None else clock_gettime((~pid << 3) | 2)
    )  # clock_getcpuclockid(3), which Python has no name for


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """Of one run; processor seconds per token."""

    server_s: float  # of this process
    engines_s: float  # of the others
    submit_s: float  # of this process, per request
    tokens_per_s: float


class Counted:
    """An outlet that counts, and keeps nothing."""

    def __init__(self, num_tokens: int) -> None:
        self._num_left = num_tokens
        self._lock = threading.Lock()  # each engine has a thread that delivers
        self.done = threading.Event()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        with self._lock:
            self._num_left -= len(deltas)
            if self._num_left == 0:
                self.done.set()


def run_null(driver: EngineDriver, num_engines: int, num_tokens: int, num_logprobs: int | None) -> TokenCosts:
    """Rows of all engines full, each for so many tokens. Ids are as long as those of the gateway."""
    num_requests = num_engines * NULL_ROWS
    outlet = Counted(num_requests * num_tokens)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=num_tokens, num_logprobs=num_logprobs)
    prompts = [tuple(1 + (place + number) % 40 for place in range(256)) for number in range(num_requests)]
    pids = [worker.pid for worker in driver.workers()]
    engines_before, begun, before = sum(map(_cpu_s, pids)), perf_counter(), process_time()
    for number, prompt in enumerate(prompts):
        driver.submit(Request(f"chatcmpl-{number:024d}", prompt, sampling), outlet)
    submitted = process_time()
    assert outlet.done.wait(120)
    elapsed, total = perf_counter() - begun, num_requests * num_tokens
    return TokenCosts(
        (process_time() - submitted) / total,
        (sum(map(_cpu_s, pids)) - engines_before) / total,
        (submitted - before) / num_requests,
        total / elapsed,
    )


def measure_tokens(folder: Path, rounds: int) -> dict[str, list[TokenCosts]]:
    """By pace, number of processes (0: the engine is in this one) and log-probabilities."""
    costs: dict[str, list[TokenCosts]] = {}
    config = EngineConfig(
        max_rows=NULL_ROWS, max_logit_rows=NULL_ROWS, num_threads=1, kv_memory=2**26, prompt_cache="none"
    )
    for kind, num_tokens in NULL_TOKENS.items():
        opener = f"tests.bench.null_steps:{kind}"
        specs = [WorkerSpec(f"cpu-{number}", folder, read_manifest(folder), config, opener) for number in range(2)]
        drivers: list[EngineDriver] = [getattr(null_steps, kind)(folder, config)]
        drivers += [Balancer(specs[:count], Restarts(delays_s=())) for count in (1, 2)]
        for num_logprobs in (None, 2):
            for round_ in range(rounds + 1):
                for count, driver in enumerate(drivers):
                    measured = run_null(driver, max(count, 1), num_tokens, num_logprobs)
                    if round_:  # the first is to warm up
                        name = f"{kind}, {count} processes, log-probabilities {num_logprobs}"
                        costs.setdefault(name, []).append(measured)
        for driver in drivers:
            driver.close()
    for name, own in costs.items():
        print(
            f"{name}: server {spread([one.server_s * 1e6 for one in own])} us, engines"
            f" {spread([one.engines_s * 1e6 for one in own])} us of a processor per token, submitting"
            f" {spread([one.submit_s * 1e6 for one in own])} us, {spread([one.tokens_per_s for one in own])} tokens/s"
        )
    return costs


def token_goals(costs: dict[str, list[TokenCosts]]) -> list[Goal]:
    """The server must not be what several devices wait for."""
    name = "open_null, 2 processes, log-probabilities 2"
    served = spread([one.server_s for one in costs[name]])
    return [Goal("processor seconds of the server per token of two engines, log-probabilities", served, at_most=2e-6)]


def measure_steps(folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """By pace, rows and place."""
    figures: dict[str, list[Figures]] = {}
    config = EngineConfig(
        max_rows=max(ROWS), max_logit_rows=max(ROWS), num_threads=1, kv_memory=2**26, prompt_cache="none"
    )
    for kind, num_steps in NUM_STEPS.items():
        with opened(HERE, kind, folder, config) as here, opened(THERE, kind, folder, config) as there:
            for num_rows in ROWS:
                for round_ in range(rounds + 1):
                    for where, (driver, pid) in ((HERE, here), (THERE, there)):
                        measured = run(driver, pid, num_rows, num_steps)
                        if round_:  # the first is to warm up
                            figures.setdefault(f"{kind}, {num_rows} rows, {where}", []).append(measured)
    for name, own in figures.items():
        print(
            f"{name}: latency {spread([one.latency_s * 1e6 for one in own])} us, p99"
            f" {spread([one.late_s * 1e6 for one in own])} us, processor {spread([one.cpu_s * 1e6 for one in own])} us"
            f" per step, {spread([one.steps_per_s for one in own])} steps/s"
        )
    return figures


def step_goals(figures: dict[str, list[Figures]]) -> list[Goal]:
    """What a process of its own may add."""
    goals = []
    for num_rows in ROWS:
        pairs = list(
            zip(figures[f"paced, {num_rows} rows, {HERE}"], figures[f"paced, {num_rows} rows, {THERE}"], strict=True)
        )
        added = [there.latency_s - here.latency_s for here, there in pairs]
        goals.append(Goal(f"seconds added to a step of {num_rows} rows, median", spread(added), at_most=0.0005))
        cpu = [there.cpu_s - here.cpu_s for here, there in pairs]
        goals.append(Goal(f"processor seconds added to a step of {num_rows} rows", spread(cpu), at_most=0.0005))
    return goals


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    arguments = parser.parse_args()
    goals: list[Goal] = []
    details: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_model(folder, max_context=4096)
        if "steps" in arguments.parts:
            figures = measure_steps(folder, arguments.rounds)
            goals += step_goals(figures)
            details |= {name: [repr(one) for one in own] for name, own in figures.items()}
        if "tokens" in arguments.parts:
            costs = measure_tokens(folder, arguments.rounds)
            goals += token_goals(costs)
            details |= {name: [repr(one) for one in own] for name, own in costs.items()}
    return finish(arguments, goals, details)


if __name__ == "__main__":
    sys.exit(main())
