"""How full the engine's steps are, by the server's own counters. Knows no load."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tests.bench.loaded.client import Caller

_NAMES = ("ortserve_steps_total", "ortserve_step_rows_total", "ortserve_computed_tokens_total")


@dataclass(frozen=True, slots=True)
class Counters:
    """Of all engines since they began."""

    at_s: float
    steps: float
    rows: float
    tokens: float

    @classmethod
    def of(cls, text: str, at_s: float) -> Counters:
        """From the text of /metrics."""
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
        steps, rows, tokens = (
            sum(float(value) for key, value in samples if key.partition("{")[0] == name) for name in _NAMES
        )
        return cls(at_s, steps, rows, tokens)

    def since(self, first: Counters) -> dict[str, float]:
        """Steps a second, and what a step holds on average: rows, and tokens of prompts and replies."""
        steps = self.steps - first.steps
        return {
            "steps_per_s": steps / (self.at_s - first.at_s),
            "rows_per_step": (self.rows - first.rows) / max(steps, 1),
            "tokens_per_step": (self.tokens - first.tokens) / max(steps, 1),
        }


async def occupancy(port: int, begin_s: float, end_s: float) -> dict[str, float]:
    """Between two moments of `time.perf_counter`. Raises `OSError` where the server does not tell."""
    caller = Caller(port)

    async def read(at_s: float) -> Counters:
        await asyncio.sleep(max(at_s - time.perf_counter(), 0.0))
        text = (await caller.get("/metrics")).decode()
        return Counters.of(text, time.perf_counter())

    try:
        first = await read(begin_s)
        return (await read(end_s)).since(first)
    finally:
        caller.close()
