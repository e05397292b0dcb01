"""Draws a report: throughput and latency over load. The only place that imports matplotlib (extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ortserve.gateway.bench.report import BenchReport
from ortserve.gateway.bench.statistics import Distribution
from ortserve.gateway.bench.workload import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Find out before the load whether a plot can be written: raises `BenchError`."""
    if path.suffix.lower() not in FORMATS:
        raise BenchError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise BenchError("--plot needs matplotlib: pip install 'ortserve[plot]'") from None


def write_plot(report: BenchReport, path: Path) -> None:
    """Three panels over concurrency or arrival rate: tokens per second, time to first token, inter-token latency."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a display

    loads = [level.load for level in report.levels]
    closed = report.levels[0].mode == "closed"
    figure = Figure(figsize=(13, 4), layout="constrained")
    speed, ttft, itl = figure.subplots(1, 3)
    speed.plot(loads, [level.output_tokens_per_s for level in report.levels], "o-", label="output")
    speed.plot(loads, [level.total_tokens_per_s for level in report.levels], "o--", label="prompt and output")
    speed.set_ylabel("tokens per second")
    _draw_percentiles(ttft, loads, [level.ttft for level in report.levels])
    ttft.set_ylabel("time to first token, ms")
    _draw_percentiles(itl, loads, [level.itl for level in report.levels])
    itl.set_ylabel("inter-token latency, ms")
    for axes in (speed, ttft, itl):
        axes.set_xlabel("concurrent requests" if closed else "requests per second")
        axes.set_xticks(loads)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    work = report.workload
    figure.suptitle(f"{work.model}: {work.num_prompt_tokens} prompt tokens, {work.num_output_tokens} output tokens")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise BenchError(f"--plot {path}: {error.strerror}") from None


def _draw_percentiles(axes: Axes, loads: list[float], spreads: list[Distribution | None]) -> None:
    for name in ("p50", "p95", "p99"):
        points = [
            (load, 1000 * getattr(spread, name))
            for load, spread in zip(loads, spreads, strict=True)
            if spread is not None
        ]
        axes.plot([load for load, _ in points], [value for _, value in points], "o-", label=name)
