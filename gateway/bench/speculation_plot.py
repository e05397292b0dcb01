"""Draws speedups over streams, one line per kind of work; measured values only. Imports matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortserve.gateway.bench.speculation import CaseReport
from ortserve.gateway.bench.workload import BenchError


def write_speedups(reports: Sequence[CaseReport], title: str, path: Path) -> None:
    """A panel per temperature: medians with their lowest and highest round. Raises `BenchError`."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a display

    temperatures = sorted({report.case.temperature for report in reports})
    figure = Figure(figsize=(6 * len(temperatures), 4), layout="constrained")
    panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        own = [report for report in reports if report.case.temperature == temperature]
        for kind in dict.fromkeys(report.case.kind for report in own):
            line = [report for report in own if report.case.kind == kind]
            medians = [report.speedup for report in line]
            below = [report.speedup - min(report.speedups) for report in line]
            above = [max(report.speedups) - report.speedup for report in line]
            streams = [report.case.num_streams for report in line]
            axes.errorbar(streams, medians, yerr=(below, above), fmt="o-", capsize=3, label=kind)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_title(f"temperature {temperature:g}")
        axes.set_xlabel("streams")
        axes.set_ylabel("tokens per second, with over without")
        axes.set_xticks(sorted({report.case.num_streams for report in own}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise BenchError(f"--plot {path}: {error.strerror}") from None
