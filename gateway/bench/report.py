"""A benchmark's result as one value, as JSON and as a table. Knows no sockets and computes nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from ortserve.gateway.bench.calibrate import Calibration
from ortserve.gateway.bench.statistics import Distribution, LevelReport
from ortserve.gateway.bench.workload import Target, Workload
from ortserve.runtime.host.machine import cpu_facts

SCHEMA_VERSION = 1  # raised when a field changes its meaning or goes away


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """The machine and the versions that generated the load."""

    ortserve: str
    python: str
    cpu: str
    num_cores: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server said of itself."""

    url: str
    headers: Mapping[str, str]
    model: Mapping[str, Any]  # its entry in /v1/models


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything about one run of `ortserve bench`; what `--json` writes. Durations are seconds."""

    schema_version: int
    created: str  # ISO 8601, UTC
    workload: Workload
    prompts: str  # how prompts of an exact length were made
    notes: tuple[str, ...]
    server: ServerFacts
    client: ClientFacts
    levels: tuple[LevelReport, ...]


def build_report(
    target: Target, workload: Workload, calibration: Calibration, levels: tuple[LevelReport, ...]
) -> BenchReport:
    """Join what was measured with what it was measured on."""
    cpu = cpu_facts()
    num_short, num_done = sum(level.num_short for level in levels), sum(level.num_completed for level in levels)
    short = f"{num_short} of {num_done} replies are shorter than {workload.num_output_tokens} tokens"
    return BenchReport(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=workload,
        prompts=calibration.source.vocabulary.describe(),
        notes=(*calibration.notes, *([short] if num_short else [])),
        server=ServerFacts(target.url, dict(calibration.headers), dict(calibration.model)),
        client=ClientFacts(_version(), platform.python_version(), cpu.model, cpu.num_usable),
        levels=levels,
    )


def report_json(report: BenchReport) -> bytes:
    """Indented JSON, stable key order."""
    return msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2) + b"\n"


def write_table(report: BenchReport, out: TextIO) -> None:
    """One row per level; times in milliseconds as p50 / p95 / p99. `steady`: output tokens/s at full concurrency."""
    console = Console(file=out, width=None if out.isatty() else 160, highlight=False)
    work = report.workload
    console.print(
        f"{report.server.url}  {work.model}  {work.api}: {work.num_prompt_tokens} prompt tokens"
        f" ({work.num_shared_tokens} shared), {work.num_output_tokens} output tokens, temperature {work.temperature:g},"
        f" seed {work.seed}; prompts of {report.prompts}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for title, _ in _COLUMNS:
        table.add_column(title, justify="right")
    for level in report.levels:
        table.add_row(*(cell(level) for _, cell in _COLUMNS))
    console.print(table)
    for line in (*report.notes, *_failure_lines(report)):
        console.print(f"note: {line}", markup=False, soft_wrap=True)


def _failure_lines(report: BenchReport) -> list[str]:
    return [
        f"{_load(level)}: {failure.count} requests failed ({failure.kind}): {failure.example}"
        for level in report.levels
        for failure in level.failures
    ]


def _load(level: LevelReport) -> str:
    return f"{level.load:g}" if level.mode == "closed" else f"{level.load:g}/s"


def _milliseconds(spread: Distribution | None) -> str:
    if spread is None:
        return "-"
    return " / ".join(f"{1000 * value:.{1 if value < 1 else 0}f}" for value in (spread.p50, spread.p95, spread.p99))


_COLUMNS: tuple[tuple[str, Callable[[LevelReport], str]], ...] = (
    ("load", _load),
    ("done", lambda level: f"{level.num_completed}/{level.num_requests}"),
    ("req/s", lambda level: f"{level.requests_per_s:.2f}"),
    ("out tok/s", lambda level: f"{level.output_tokens_per_s:.1f}"),
    ("steady", lambda level: "-" if level.steady_tokens_per_s is None else f"{level.steady_tokens_per_s:.1f}"),
    ("all tok/s", lambda level: f"{level.total_tokens_per_s:.1f}"),
    ("TTFT ms p50/95/99", lambda level: _milliseconds(level.ttft)),
    ("ITL ms p50/95/99", lambda level: _milliseconds(level.itl)),
    ("whole ms p50/95/99", lambda level: _milliseconds(level.end_to_end)),
    ("late ms p50/95/99", lambda level: _milliseconds(level.queue_delay)),
    ("client cpu", lambda level: f"{100 * level.client_cpu_share:.0f} %"),
)


def _version() -> str:
    try:
        return metadata.version("ortserve")
    except metadata.PackageNotFoundError:
        return "unknown"
