"""What a long prompt does to running streams, and what they do to it, in one engine.

In each round: streams alone (idle), streams while the long prompt prefills, and the long prompt alone. An inter-token
latency is the time between two deliveries of one stream.

  python -m tests.bench.prefill_interference FOLDER --prompt-tokens 8000 --json out.json
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import numpy as np

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import Delta, FinishReason, Request, SamplingParams
from tests.bench.measurement import Goal, finish, script_parser, spread


class Clock:
    """Outlet that notes when each request's tokens came."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}
        self.failures: list[str] = []
        self._changed = threading.Condition()
        self._ended: set[str] = set()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of the driver's `Outlet`."""
        now = perf_counter()
        with self._changed:
            for delta in deltas:
                if delta.token_ids:
                    self.times.setdefault(delta.request_id, []).append(now)
                if delta.finish is not None:
                    self._ended.add(delta.request_id)
                if delta.finish is FinishReason.ERROR:
                    self.failures.append(str(delta.error))
            self._changed.notify_all()

    def wait_first(self, names: Sequence[str]) -> float:
        """Until each of `names` has a token; when the last of them came."""
        with self._changed:
            self._changed.wait_for(lambda: self.failures or all(name in self.times for name in names))
        if self.failures:
            raise RuntimeError(self.failures[0])
        return max(self.times[name][0] for name in names)

    def wait_end(self, names: Sequence[str]) -> None:
        """Until each of `names` has finished or was cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: set(names) <= self._ended)

    def gaps(self, names: Sequence[str], begin_s: float, end_s: float) -> list[float]:
        """Inter-token latencies of `names` that ended within the interval."""
        with self._changed:
            pairs = [pair for name in names for pair in zip(self.times[name], self.times[name][1:], strict=False)]
        return [after - before for before, after in pairs if begin_s < before and after <= end_s]


@dataclass(frozen=True, slots=True)
class Round:
    """One round; latencies in seconds."""

    idle_p50: float
    idle_p99: float
    busy_p50: float
    busy_p99: float
    prefill_alone_s: float
    prefill_busy_s: float


class Interference:
    """Runs rounds on one driver."""

    def __init__(self, driver: Driver, *, num_streams: int, num_prompt_tokens: int, idle_s: float) -> None:
        self._driver = driver
        self._num_streams = num_streams
        self._num_prompt_tokens = num_prompt_tokens
        self._idle_s = idle_s
        self._generator = np.random.default_rng(5)

    def run(self, number: int) -> Round:
        """One round with fresh requests."""
        clock = Clock()
        alone = self._prefill(f"alone{number}", clock)
        names = [f"stream{number}.{index}" for index in range(self._num_streams)]
        for name in names:
            self._submit(name, 32, self._driver.max_context - 32, clock)
        begin = clock.wait_first(names)
        sleep(self._idle_s)
        middle = perf_counter()
        busy = self._prefill(f"busy{number}", clock)
        idle_gaps, busy_gaps = clock.gaps(names, begin, middle), clock.gaps(names, middle, middle + busy)
        for name in names:
            self._driver.cancel(name)
        clock.wait_end(names)
        idle, during = np.quantile(idle_gaps, (0.5, 0.99)), np.quantile(busy_gaps, (0.5, 0.99))
        return Round(float(idle[0]), float(idle[1]), float(during[0]), float(during[1]), alone, busy)

    def _prefill(self, name: str, clock: Clock) -> float:
        """Seconds until the long prompt's first token."""
        start = perf_counter()
        self._submit(name, self._num_prompt_tokens, 1, clock)
        return clock.wait_first([name]) - start

    def _submit(self, name: str, num_prompt_tokens: int, max_tokens: int, clock: Clock) -> None:
        num_tokens = self._driver.manifest.num_tokens
        drawn = self._generator.integers(num_tokens // 4, num_tokens, num_prompt_tokens)
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self._driver.submit(Request(name, tuple(drawn.tolist()), sampling), clock)


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="exported model")
    parser.add_argument("--streams", type=int, default=8, help="default %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=8000, help="of the long prompt (default %(default)s)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of streams alone (default %(default)g)")
    parser.add_argument("--max-step-ms", type=float, help="bound on one step (default: the engine's)")
    arguments = parser.parse_args()
    config = EngineConfig(
        max_rows=arguments.streams + 1, max_context=arguments.prompt_tokens + 192, max_step_ms=arguments.max_step_ms
    )
    driver = open_driver(arguments.folder, config)
    interference = Interference(
        driver,
        num_streams=arguments.streams,
        num_prompt_tokens=arguments.prompt_tokens,
        idle_s=arguments.idle,
    )
    try:
        rounds = [interference.run(number) for number in range(arguments.rounds)]
    finally:
        driver.close()
    for one in rounds:
        print(
            f"ITL p50/p99 idle {1e3 * one.idle_p50:.0f}/{1e3 * one.idle_p99:.0f} ms, during the prefill"
            f" {1e3 * one.busy_p50:.0f}/{1e3 * one.busy_p99:.0f} ms; prefill alone {one.prefill_alone_s:.1f} s,"
            f" among streams {one.prefill_busy_s:.1f} s"
        )
    goals = [
        Goal("p99 ITL over idle", spread([one.busy_p99 / one.idle_p99 for one in rounds]), at_most=4.0),
        Goal("prefill speed over alone", spread([r.prefill_alone_s / r.prefill_busy_s for r in rounds]), at_least=0.8),
    ]
    return finish(arguments, goals, {"rounds": rounds})


if __name__ == "__main__":
    sys.exit(main())
