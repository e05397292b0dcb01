"""An engine whose steps cost next to nothing, for measuring what is around it. Knows no model and no memory.

A request gets a token per step, with log-probabilities if it asks for them, until it has `max_tokens`. What `Driver`
asks of an engine is there: statistics and progress are new values after every step, as those of a real one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any, cast

from ortserve.plugins.api import CacheStats
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.engine import Engine, EngineStats
from ortserve.runtime.host.bell import Bell
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.plan import plan_engine
from ortserve.runtime.request import Delta, FinishReason, Request, TokenLogprobs, Usage
from ortserve.runtime.scheduling.backlog import Progress, RunningState

PACE_S = 0.0025  # a step of 64 rows of a model of 1B parameters on a fast GPU
_CACHE = CacheStats()


class NullEngine:
    """As much of an `Engine` as a `Driver` uses."""

    def __init__(self, pace_s: float) -> None:
        """A step takes at least `pace_s` seconds."""
        self.bell = Bell()
        self.drafting = None
        self.is_stalled = False
        self.reuse = SimpleNamespace(stats=lambda: _CACHE)
        self._pace_s = pace_s
        self._begun_s = 0.0
        self._running: dict[str, tuple[Request, int]] = {}  # and its tokens so far
        self._stats = EngineStats()

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    @property
    def scheduler(self) -> Any:
        """For a driver that closes: what it has to cancel."""
        return SimpleNamespace(sequences=[SimpleNamespace(request=request) for request, _ in self._running.values()])

    def add(self, request: Request, _: object = None) -> None:
        self._running[request.id] = (request, 0)

    def cancel(self, request_id: str) -> Delta | None:
        known = self._running.pop(request_id, None)
        return None if known is None else Delta(request_id, (), finish=FinishReason.CANCELLED)

    def step(self) -> list[Delta]:
        """A token for each."""
        if self._pace_s:
            sleep(max(0.0, self._begun_s + self._pace_s - perf_counter()))
            self._begun_s = perf_counter()
        deltas = []
        for name, (request, before) in list(self._running.items()):
            sampling, num = request.sampling, before + 1
            token = 1000 + num
            scores = () if sampling.num_logprobs is None else (_score(token, sampling.num_logprobs),)
            if num == sampling.max_tokens:
                del self._running[name]
                usage = Usage(len(request.prompt), 0, 0, num, 0, 0, 0, 0.0, 0.0, 0.0)
                deltas.append(Delta(name, (token,), scores, FinishReason.LENGTH, usage))
            else:
                self._running[name] = (request, num)
                deltas.append(Delta(name, (token,), scores))
        self._stats.num_steps += 1
        self._stats.num_output_tokens += len(deltas)
        return deltas

    def stats(self) -> EngineStats:
        return replace(self._stats, num_running=len(self._running))

    def progress(self) -> Progress:
        return Progress({name: RunningState(1, num) for name, (_, num) in self._running.items()})

    def close(self) -> None:
        pass


def _score(token: int, num_best: int) -> TokenLogprobs:
    return TokenLogprobs(token, -0.25, tuple((token + place, -0.25 - place) for place in range(num_best)))


def open_null(folder: Path, config: EngineConfig) -> Driver:
    """Steps as fast as they can be handed out."""
    return _driver(folder, config, 0.0)


def open_null_paced(folder: Path, config: EngineConfig) -> Driver:
    """A step every `PACE_S` seconds."""
    return _driver(folder, config, PACE_S)


def _driver(folder: Path, config: EngineConfig, pace_s: float) -> Driver:
    manifest = read_manifest(folder)
    plan = plan_engine(manifest, config, available_bytes=2**30)
    return Driver(cast(Engine, NullEngine(pace_s)), manifest, plan)
