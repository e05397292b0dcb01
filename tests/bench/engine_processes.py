"""What it costs that an engine is in a process of its own: time from a step to its outlet, processor time, throughput.

The same synthetic model runs in this process and in another one, in turns. `paced`: a step every few milliseconds, as a
real model has it; each delta carries the time at which its step was done, and both processes read one clock. `free`:
steps as fast as they come, which shows what the crossing takes from the engine.

  python -m tests.bench.engine_processes --json out.json
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic_ns, perf_counter, process_time, sleep

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, Request, SamplingParams
from ortserve.runtime.testing import write_synthetic_model
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.remote import RemoteDriver
from tests.bench.measurement import Goal, finish, script_parser, spread

PACE_S = 0.005
NUM_STEPS = {"paced": 200, "free": 600}
ROWS = (1, 16, 64)
HERE, THERE = "in process", "of its own"


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
        return [replace(delta, token_ids=now if delta.token_ids else ()) for delta in deltas]

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
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = script_parser(__doc__ or "")
    arguments = parser.parse_args()
    figures: dict[str, list[Figures]] = {}
    config = EngineConfig(
        max_rows=max(ROWS), max_logit_rows=max(ROWS), num_threads=1, kv_memory=2**26, prompt_cache="none"
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_model(folder, max_context=4096)
        for kind, num_steps in NUM_STEPS.items():
            with opened(HERE, kind, folder, config) as here, opened(THERE, kind, folder, config) as there:
                for num_rows in ROWS:
                    for round_ in range(arguments.rounds + 1):
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
    goals = []
    for num_rows in ROWS:
        pairs = list(
            zip(figures[f"paced, {num_rows} rows, {HERE}"], figures[f"paced, {num_rows} rows, {THERE}"], strict=True)
        )
        added = [there.latency_s - here.latency_s for here, there in pairs]
        goals.append(Goal(f"seconds added to a step of {num_rows} rows, median", spread(added), at_most=0.0005))
        cpu = [there.cpu_s - here.cpu_s for here, there in pairs]
        goals.append(Goal(f"processor seconds added to a step of {num_rows} rows", spread(cpu), at_most=0.0005))
    return finish(arguments, goals, {name: [repr(one) for one in own] for name, own in figures.items()})


if __name__ == "__main__":
    sys.exit(main())
