"""`ortserve doctor`: runs the checks and prints them with their remedies. Decides nothing by itself."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from ortserve.gateway.doctor.findings import Finding, Verdict
from ortserve.gateway.doctor.host import (
    check_cores,
    check_memory,
    check_open_files,
    check_port,
    check_processor,
    check_python,
)
from ortserve.gateway.doctor.wheels import (
    GPU_WHEEL,
    check_cuda,
    check_gpus,
    check_int8,
    check_libraries,
    check_runtime,
    check_wheels,
    installed_runtimes,
)
from ortserve.runtime.host.machine import cpu_facts, memory_budget

SCHEMA_VERSION = 1

DESCRIPTION = (
    """Check this machine and this installation, time the quantization recipes and recommend one per workload."""
)

EXAMPLE = """example:
  ortserve doctor --quick
  ortserve doctor --quick --config ortserve.toml    also the models that a server would load

exit status: 0 fine, 1 something is broken (each with its remedy), 2 bad usage"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds per matrix [num_tokens, 896] x [896, 4864] under one recipe."""

    recipe: str
    workload: str
    num_tokens: int
    median_ms: float
    lowest_ms: float
    highest_ms: float


@dataclass(frozen=True, slots=True)
class Advice:
    """The recipe for one workload."""

    workload: str
    recipe: str
    flags: str  # of `ortserve export`
    reason: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything `--json` prints."""

    schema_version: int
    healthy: bool
    findings: tuple[Finding, ...]
    timings: tuple[Measured, ...]
    advice: tuple[Advice, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ortserve doctor`."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="time small chains: about two seconds, less exact")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--host", default="127.0.0.1", help="for --port (default %(default)s)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="also check the models that it names, and memory")
    parser.add_argument("--port", type=_port, help="also check that a server could listen on this port")


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return 0 or 1."""
    config: Path | None = arguments.config
    diagnosis = diagnose(quick=arguments.quick, host=arguments.host, port=arguments.port, config=config)
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(asdict(diagnosis)), indent=2).decode() + "\n")
    else:
        _write(diagnosis, sys.stdout)
    return 0 if diagnosis.healthy else 1


def diagnose(*, quick: bool, host: str = "127.0.0.1", port: int | None = None, config: Path | None = None) -> Diagnosis:
    """Run every check that can run. Raises `ConfigurationError` for a file that `serve` would refuse."""
    cpu, installed = cpu_facts(), installed_runtimes()
    runtime = check_runtime(installed)
    findings = [
        check_python(),
        check_wheels(installed),
        runtime,
        check_libraries(),
        check_processor(cpu),
        check_cores(cpu),
        check_memory(memory_budget()),
        check_open_files(),
    ]
    if GPU_WHEEL in installed:
        findings.append(check_cuda())
    gpus = check_gpus()
    if gpus is not None:
        findings.append(gpus)
    if port is not None:
        findings.append(check_port(host, port))
    if config is not None:
        from ortserve.gateway.doctor.models import check_models, settings_of  # needs all that serving needs

        findings += check_models(settings_of(config), memory_budget())
    timings: tuple[Measured, ...] = ()
    advice: tuple[Advice, ...] = ()
    if runtime.verdict is not Verdict.BROKEN:
        int8 = check_int8()
        findings.append(int8)
        timings, advice = _measure(quick=quick, int8_works=int8.verdict is not Verdict.BROKEN)
    healthy = all(finding.verdict is not Verdict.BROKEN for finding in findings)
    return Diagnosis(SCHEMA_VERSION, healthy, tuple(findings), timings, advice)


def _measure(*, quick: bool, int8_works: bool) -> tuple[tuple[Measured, ...], tuple[Advice, ...]]:
    from ortserve.gateway.doctor.recipes import recommend, time_recipes  # needs a working ONNX Runtime

    timings = time_recipes(num_pairs=1, num_rounds=3) if quick else time_recipes(num_pairs=6, num_rounds=9)
    measured = (
        Measured(t.recipe, t.workload, t.workload.num_tokens, t.median_ms, t.lowest_ms, t.highest_ms) for t in timings
    )
    advised = (
        Advice(choice.workload, choice.recipe, choice.recipe.flags, choice.reason)
        for choice in recommend(timings, int8_works=int8_works)
    )
    return tuple(measured), tuple(advised)


def _write(diagnosis: Diagnosis, out: TextIO) -> None:
    console = Console(file=out, width=None if out.isatty() else 160, highlight=False)
    for finding in diagnosis.findings:
        console.print(f"{finding.verdict:6} {finding.name}: {finding.detail}", markup=False, soft_wrap=True)
        if finding.remedy is not None:
            console.print(f"       -> {finding.remedy}", markup=False, soft_wrap=True)
    if diagnosis.timings:
        console.print("\nms per matrix [T, 896] x [896, 4864], median (lowest to highest):")
        console.print(_timing_table(diagnosis.timings))
    if diagnosis.advice:
        console.print("\nrecommended export:")
    for advice in diagnosis.advice:
        console.print(f"  {advice.workload}: {advice.flags}  ({advice.reason})", markup=False, soft_wrap=True)


def _timing_table(timings: tuple[Measured, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe")
    workloads = dict.fromkeys((timing.workload, timing.num_tokens) for timing in timings)
    for workload, num_tokens in workloads:
        table.add_column(f"{workload}, T={num_tokens}", justify="right")
    for recipe in dict.fromkeys(timing.recipe for timing in timings):
        cells = [f"{t.median_ms:.2f} ({t.lowest_ms:.2f} to {t.highest_ms:.2f})" for t in timings if t.recipe == recipe]
        table.add_row(recipe, *cells)
    return table


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")
    return int(text)
