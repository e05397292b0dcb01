"""`ortserve bench speculation`: reads its options, runs the cases, writes table, JSON and plot. Computes nothing."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from ortserve.gateway.bench.client import Client
from ortserve.gateway.bench.options import DEFAULT_URL, count, counts, positive, served_model, temperatures, whole
from ortserve.gateway.bench.plot import check_plot
from ortserve.gateway.bench.speculation import Case, CaseReport, SpeculationRun
from ortserve.gateway.bench.speculation_plot import write_speedups
from ortserve.gateway.bench.speculation_work import KINDS
from ortserve.gateway.bench.workload import BenchError, Target, parse_target
from ortserve.runtime.host.machine import cpu_facts

DESCRIPTION = """Measure what speculation brings on a running server that has a drafter: the same requests without and
with it, in turns, by the wall clock. A request without it says so (speculative.max_draft = 0)."""

EXAMPLE = """example:
  ortserve widen pocket pocket-at-size --like qwen2.5-0.5b
  ortserve serve pocket-at-size --drafter combined &
  ortserve bench speculation --streams 1,4,8,16 --json speculation.json --plot speculation.png

exit status: 0 done, 1 a median is below --at-least, 2 bad usage or the server cannot be measured"""

_TITLES = ("work", "streams", "temp", "tok/s off", "tok/s on", "speedup", "low to high", "guessed", "held", "differ")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ortserve bench speculation`."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help=f"address, with or without /v1 (default {DEFAULT_URL})")
    add("--model", help="name, or path it is served from (default: the first listed)")
    add("--api-key", default=os.environ.get("ORTSERVE_API_KEY"), help="default: ORTSERVE_API_KEY")
    add("--timeout", type=positive, default=600.0, metavar="S", help="per request (default %(default)g)")
    add("--work", type=_kinds, default=KINDS, metavar="KIND,KIND", help=f"of {', '.join(KINDS)} (default: all)")
    add("--streams", type=counts, default=[1, 8], metavar="N,N", help="requests at once (default 1,8)")
    add("--temperatures", type=temperatures, default=[0.0, 0.7], metavar="T,T", help="default 0,0.7")
    add("--rounds", type=count, default=5, metavar="N", help="counted, after one that warms up (default %(default)s)")
    add("--output-tokens", type=count, default=160, metavar="N", help="at most, per reply (default %(default)s)")
    add("--seed", type=whole, default=0, help="of texts and draws (default %(default)s)")
    add("--at-least", type=positive, metavar="X", help="a case whose median speedup is below X fails the run")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--plot", type=Path, metavar="FILE.png", help="draw it (needs the extra `plot`)")


def run(arguments: argparse.Namespace) -> int:
    """Run the cases. Raises `BenchError` for bad usage or a server that cannot be measured."""
    target = parse_target(arguments.url, arguments.api_key)
    if arguments.plot is not None:
        check_plot(arguments.plot)
    model, reports = asyncio.run(_measure(arguments, target))
    if arguments.json is not None:
        try:
            arguments.json.write_bytes(_json(arguments, target, model, reports))
        except OSError as error:
            raise BenchError(f"--json {arguments.json}: {error.strerror}") from None
    if arguments.plot is not None:
        write_speedups(reports, f"{model}, {platform.processor() or platform.machine()}", arguments.plot)
    write_table(reports, sys.stdout)
    least = arguments.at_least
    return 1 if least is not None and any(report.speedup < least for report in reports) else 0


async def _measure(arguments: argparse.Namespace, target: Target) -> tuple[str, list[CaseReport]]:
    with contextlib.closing(Client(target, arguments.timeout)) as client:
        model = await served_model(client, target, arguments.model)
    speculation = SpeculationRun(
        target,
        model,
        num_output_tokens=arguments.output_tokens,
        seed=arguments.seed,
        timeout_s=arguments.timeout,
    )
    reports: list[CaseReport] = []
    for streams in arguments.streams:
        for kind in arguments.work:
            for temperature in arguments.temperatures:
                report = await speculation.measure(Case(kind, streams, temperature), arguments.rounds)
                sys.stderr.write(
                    f"{kind}, {streams} streams, temperature {temperature:g}: {report.speedup:.2f} times the tokens/s\n"
                )
                reports.append(report)
    return model, reports


def write_table(reports: list[CaseReport], out: TextIO) -> None:
    """One row per case: medians, and the lowest and highest of the rounds."""
    table = Table(box=None, pad_edge=False)
    for title in (
        "work",
        "streams",
        "temp",
        "tok/s off",
        "tok/s on",
        "speedup",
        "low to high",
        "guessed",
        "held",
        "differ",
    ):
        table.add_column(title, justify="left" if title == "work" else "right")
    for report in reports:
        case, held = report.case, report.accepted
        table.add_row(
            case.kind,
            str(case.num_streams),
            f"{case.temperature:g}",
            f"{median(report.plain_tokens_per_s):.1f}",
            f"{median(report.drafted_tokens_per_s):.1f}",
            f"{report.speedup:.2f}",
            f"{min(report.speedups):.2f} to {max(report.speedups):.2f}",
            f"{report.guessed:.0%}",
            "-" if held is None else f"{held:.0%}",
            f"{report.num_different}/{report.num_replies}",
        )
    Console(file=out, width=None if out.isatty() else 160, highlight=False).print(table)


def _json(arguments: argparse.Namespace, target: Target, model: str, reports: list[CaseReport]) -> bytes:
    cpu = cpu_facts()
    report: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": target.url,
        "model": model,
        "rounds": arguments.rounds,
        "output_tokens": arguments.output_tokens,
        "seed": arguments.seed,
        "machine": {"cpu": cpu.model, "num_cores": cpu.num_usable, "load_average": os.getloadavg()},
        "cases": [asdict(one) | {"speedup": one.speedup} for one in reports],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(word.strip() for word in text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kinds
